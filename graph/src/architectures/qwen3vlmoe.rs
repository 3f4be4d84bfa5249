//! The text part of Qwen3-VL: Qwen3-MoE. Positions have three axes, which on text all say the same: plain RoPE; vision
//! features that the first layers add are for images.
//!
//! Definition: Hugging Face transformers, `models/qwen3_vl_moe/modeling_qwen3_vl_moe.py`.

use super::Architecture;
use super::blocks::decoder;
use super::qwen3::DECODER;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "qwen3vlmoe", configure, lower: |l| decoder::lower(l, &DECODER) };

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    read.without_effect(&[arch::ROPE_DIMENSION_SECTIONS, arch::DEEPSTACK_LAYERS]);
    let defaults = MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: true };
    let moe = read.moe(&defaults, read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?, 0)?;
    read.model(read.attention(&AttentionDefaults::HALF)?, read.moe_where(|_| true, moe)?)
}
