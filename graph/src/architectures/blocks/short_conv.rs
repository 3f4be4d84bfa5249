//! Norm, three products of one tensor, a causal convolution between two gates, a product, residual: LFM2's short convolution.

use super::mixer::{self, Conv};
use crate::architectures::{LowerError, Lowering, only};
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{LayerIdx, Op, Stage, ValueId, WeightSlice};

/// Appends a layer's short convolution, over `kernel` tokens, to the residual stream `x` [T, D].
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    kernel: usize,
) -> Result<ValueId, LowerError> {
    let (at, width) = (Some(layer), l.config.hidden_size);
    let normed = mixer::begin(l, layer, x)?;
    let all = l.matrix(&blk(layer.index(), tensor::SHORTCONV_IN_PROJ), 3 * width, width)?;
    let part = |i: usize| WeightSlice { rows: i * width..(i + 1) * width, ..all.clone() };
    let b = mixer::project(l, layer, "b_proj", part(0), normed)?;
    let c = mixer::project(l, layer, "c_proj", part(1), normed)?;
    let inner = mixer::project(l, layer, "x_proj", part(2), normed)?;
    let gated = only(l.graph.push(at, "conv_input", Op::Mul, &[b, inner])?);
    let conv = Conv { name: "conv", weight: tensor::SHORTCONV_CONV, bias: None, activation: None, kernel };
    let mixed = mixer::conv(l, layer, gated, &conv)?;
    let gated = only(l.graph.push(at, "conv_gated", Op::Mul, &[c, mixed])?);
    l.graph.tap(at, Stage::ConvGated, &[gated])?;
    mixer::end(l, layer, x, gated, tensor::SHORTCONV_OUT_PROJ)
}
