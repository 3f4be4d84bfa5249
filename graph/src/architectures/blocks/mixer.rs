//! What mixers without attention share: the norm in front, the causal convolution, the product behind and the residual.

use super::branch::Branch;
use super::norm;
use crate::architectures::lowering::Presence;
use crate::architectures::{LowerError, Lowering, only};
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{ActivationFn, CausalConvAttrs, LayerIdx, Op, Stage, StateRole, ValueId, WeightSlice};

/// Appends the norm in front of a mixer.
pub(super) fn begin(l: &mut Lowering<'_>, layer: LayerIdx, x: ValueId) -> Result<ValueId, LowerError> {
    let normed = norm::lower(l, Some(layer), "attn_norm", &blk(layer.index(), tensor::ATTN_NORM), x, 1)?;
    l.graph.tap(Some(layer), Stage::AttnNorm, &[normed])?;
    Ok(normed)
}

/// Appends a product of some rows of a matrix.
pub(super) fn project(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    name: &'static str,
    weight: WeightSlice,
    x: ValueId,
) -> Result<ValueId, LowerError> {
    let op = Op::MatMul { weight, bias: None, scale: None };
    Ok(only(l.graph.push(Some(layer), name, op, &[x])?))
}

/// A causal convolution's tensors, and what is made of its sums.
pub(super) struct Conv {
    /// Of the node.
    pub name: &'static str,
    /// [C, kernel].
    pub weight: &'static str,
    /// [C].
    pub bias: Option<&'static str>,
    /// Of the sum.
    pub activation: Option<ActivationFn>,
    /// Tokens that a sum reaches back over, its own included.
    pub kernel: usize,
}

/// Appends a causal convolution with its state, which its layer has once.
pub(super) fn conv(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    conv: &Conv,
) -> Result<ValueId, LowerError> {
    let out = convolve(l, layer, x, conv)?;
    l.graph.tap(Some(layer), Stage::ConvOut, &[out])?;
    Ok(out)
}

/// Appends a causal convolution with its state, one of several.
pub(super) fn convolve(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    conv: &Conv,
) -> Result<ValueId, LowerError> {
    let channels = l.graph.value(x).shape.width().unwrap_or(0);
    let file = |rest: &str| blk(layer.index(), rest);
    let weight = l.conv_weight(&file(conv.weight), channels, conv.kernel)?;
    let bias = match conv.bias {
        Some(bias) => l.opt_vector(&file(bias), channels, Presence::Required)?,
        None => None,
    };
    let state = l.graph.add_sequence_state(StateRole::Conv, layer, &[channels, conv.kernel - 1]);
    let attrs = CausalConvAttrs { weight, bias, activation: conv.activation, state };
    let inputs = [x, l.graph.inputs.positions, l.graph.inputs.sequence];
    Ok(only(l.graph.push(Some(layer), conv.name, Op::CausalConv(attrs), &inputs)?))
}

/// Appends the product behind what a mixer made, and adds it to the residual stream `x`.
pub(super) fn end(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    mixed: ValueId,
    tensor: &str,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let width = l.graph.value(mixed).shape.width().unwrap_or(0);
    let weight = l.matrix(&blk(layer.index(), tensor), l.config.hidden_size, width)?;
    let op = |scale| Op::MatMul { weight: weight.clone(), bias: None, scale };
    let out = Branch::begin(l, at, ["out_proj", "out_proj_unscaled"], op, &[mixed])?[0];
    l.graph.tap(at, Stage::AttnOut, &[out.plain])?;
    add(l, layer, x, out.scaled)
}

/// Adds what a mixer gives to the residual stream `x`.
pub(super) fn add(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    out: ValueId,
) -> Result<ValueId, LowerError> {
    let residual = only(l.graph.push(Some(layer), "attn_residual", Op::Add, &[x, out])?);
    l.graph.tap(Some(layer), Stage::PostAttnResidual, &[residual])?;
    Ok(residual)
}
