//! Qwen1.5-MoE and Qwen2-57B-A14B: biased q, k and v, weights that are not renormalised, a shared expert with a gate.
//!
//! Definition: Hugging Face transformers, `models/qwen2_moe/modeling_qwen2_moe.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "qwen2moe", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec { qkv_bias: Presence::Required, ..AttentionSpec::PLAIN },
    ffn: FfnSpec { shared_expert_gate: Presence::Required, ..FfnSpec::PLAIN },
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    // Old files state the width of all experts that a token takes, and the shared one has the same.
    let width = match read.opt_dimension(arch::EXPERT_FEED_FORWARD_LENGTH)? {
        Some(width) => width,
        None => read.dimension(arch::FEED_FORWARD_LENGTH)? / read.dimension(arch::EXPERT_USED_COUNT)?,
    };
    let shared_width = match read.opt_dimension(arch::EXPERT_SHARED_FEED_FORWARD_LENGTH)? {
        Some(width) => width,
        None => read.dimension(arch::FEED_FORWARD_LENGTH)?,
    };
    let defaults = MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: false };
    let moe = read.moe(&defaults, width, shared_width)?;
    read.model(read.attention(&AttentionDefaults::HALF)?, read.moe_where(|_| true, moe)?)
}
