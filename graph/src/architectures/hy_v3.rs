//! Hy3: per-head Q/K norm before RoPE, a dense first layer, sigmoid router with a selection bias, a shared expert.
//!
//! Definition: `fixtures/arch/hy_v3/README.md` of this project's fixtures, after Tencent's release.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::{arch, blk, layer as tensor};
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "hy_v3", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec { qk_norm: Presence::Required, ..AttentionSpec::PLAIN },
    ffn: FfnSpec {
        selection_bias: Presence::Required,
        selection_bias_name: tensor::EXP_PROBS_B_PLAIN,
        ..FfnSpec::PLAIN
    },
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let defaults = MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: true };
    let shared_width = read.dimension(arch::EXPERT_SHARED_FEED_FORWARD_LENGTH)?;
    let moe = read.moe(&defaults, read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?, shared_width)?;
    // No key says which layers are dense: those without a router.
    let routed = |layer| read.has(&blk(layer, tensor::FFN_GATE_INP));
    read.model(read.attention(&AttentionDefaults::HALF)?, read.moe_where(routed, moe)?)
}
