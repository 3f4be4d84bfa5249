//! MiniMax-M2: a norm over all heads of q and of k at once, RoPE on a part of each head, sigmoid router with a selection
//! bias.
//!
//! Definition: Hugging Face transformers, `models/minimax_m2/modeling_minimax_m2.py`.

use super::Architecture;
use super::blocks::attention::{AttentionSpec, NormSpan};
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "minimax-m2", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec {
        qk_norm: Presence::Required,
        qk_norm_span: NormSpan::Row,
        ..AttentionSpec::PLAIN
    },
    ffn: FfnSpec { selection_bias: Presence::Required, ..FfnSpec::PLAIN },
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let defaults = MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: true };
    let moe = read.moe(&defaults, read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?, 0)?;
    read.model(read.attention(&AttentionDefaults::HALF)?, read.moe_where(|_| true, moe)?)
}
