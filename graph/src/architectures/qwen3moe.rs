//! Qwen3-MoE: per-head Q/K norm, half-pairing RoPE, grouped queries, softmax → top-k → renormalised experts.
//!
//! Definition: Hugging Face transformers, `models/qwen3_moe/modeling_qwen3_moe.py`.

use super::blocks::{attention, embedding, lm_head, moe};
use super::{LowerError, Lowering};
use crate::ir::LayerIdx;

pub(super) fn lower(l: &mut Lowering<'_>) -> Result<(), LowerError> {
    let mut x = embedding::lower(l)?;
    for i in 0..l.config.num_hidden_layers {
        let layer = LayerIdx(i as u32);
        x = attention::lower(l, layer, x)?;
        x = moe::lower(l, layer, x)?;
    }
    lm_head::lower(l, x)
}
