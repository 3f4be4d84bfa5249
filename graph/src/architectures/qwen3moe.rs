//! Qwen3-MoE: per-head Q/K norm, half-pairing RoPE, grouped queries, softmax → top-k → renormalised experts.
//!
//! Definition: Hugging Face transformers, `models/qwen3_moe/modeling_qwen3_moe.py`.

use super::Architecture;
use super::blocks::decoder;
use super::qwen3::{ATTENTION, DECODER};
use crate::config::{ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "qwen3moe", configure, lower: |l| decoder::lower(l, &DECODER) };

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let defaults = MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: true };
    let moe = read.moe(&defaults, read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?, 0)?;
    read.model(read.attention(&ATTENTION)?, read.moe_where(|_| true, moe)?)
}
