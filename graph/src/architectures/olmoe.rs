//! OLMoE: a norm over all heads of q and of k at once, weights that are not renormalised.
//!
//! Definition: Hugging Face transformers, `models/olmoe/modeling_olmoe.py`.

use super::Architecture;
use super::blocks::attention::{AttentionSpec, NormSpan};
use super::blocks::decoder::{self, DecoderSpec};
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "olmoe", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec {
        qk_norm: Presence::Required,
        qk_norm_span: NormSpan::Row,
        ..AttentionSpec::PLAIN
    },
    ..DecoderSpec::PLAIN
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let defaults = MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: false };
    let moe = read.moe(&defaults, read.dimension(arch::FEED_FORWARD_LENGTH)?, 0)?;
    read.model(read.attention(&AttentionDefaults::HALF)?, read.moe_where(|_| true, moe)?)
}
