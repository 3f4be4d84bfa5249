//! Dense Qwen3: Qwen3-MoE's attention with one SwiGLU a layer.
//!
//! Definition: Hugging Face transformers, `models/qwen3/modeling_qwen3.py`.

use super::blocks::{attention, dense_ffn, embedding, lm_head};
use super::{LowerError, Lowering};
use crate::ir::LayerIdx;

pub(super) fn lower(l: &mut Lowering<'_>) -> Result<(), LowerError> {
    let mut x = embedding::lower(l)?;
    for i in 0..l.config.num_hidden_layers {
        let layer = LayerIdx(i as u32);
        x = attention::lower(l, layer, x)?;
        x = dense_ffn::lower(l, layer, x)?;
    }
    lm_head::lower(l, x)
}
