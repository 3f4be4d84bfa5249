//! Norm, one SwiGLU, residual.

use super::norm;
use crate::architectures::{LowerError, Lowering, only};
use crate::config::FfnConfig;
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{ActivationFn, LayerIdx, Op, Stage, ValueId};

/// Appends a dense feed-forward layer to the residual stream `x` [T, D]; experts where the configuration says so.
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower(l: &mut Lowering<'_>, layer: LayerIdx, x: ValueId) -> Result<ValueId, LowerError> {
    let FfnConfig::Dense { intermediate_size } = l.config.layers[layer.index()].ffn else {
        return super::moe::lower(l, layer, x);
    };
    let hidden_size = l.config.hidden_size;
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);

    let normed = norm::lower(l, at, "ffn_norm", &file(tensor::FFN_NORM), x, 1)?;
    l.graph.tap(at, Stage::FfnNorm, &[normed])?;
    let mut project = |name, rest: &str, out, inner, x| -> Result<ValueId, LowerError> {
        let weight = l.matrix(&file(rest), out, inner)?;
        Ok(only(l.graph.push(at, name, Op::MatMul { weight, bias: None, scale: None }, &[x])?))
    };
    let gate = project("gate_proj", tensor::FFN_GATE, intermediate_size, hidden_size, normed)?;
    let up = project("up_proj", tensor::FFN_UP, intermediate_size, hidden_size, normed)?;
    l.graph.tap(at, Stage::FfnGate, &[gate])?;
    l.graph.tap(at, Stage::FfnUp, &[up])?;
    let act = l.graph.push(at, "swiglu", Op::GatedAct { activation: ActivationFn::Silu }, &[gate, up])?;
    l.graph.tap(at, Stage::FfnSilu, &[act[0]])?;
    l.graph.tap(at, Stage::FfnSwigl, &[act[1]])?;
    let weight = l.matrix(&file(tensor::FFN_DOWN), hidden_size, intermediate_size)?;
    let out =
        only(l.graph.push(at, "down_proj", Op::MatMul { weight, bias: None, scale: None }, &[act[1]])?);
    l.graph.tap(at, Stage::FfnOut, &[out])?;
    let residual = only(l.graph.push(at, "ffn_residual", Op::Add, &[x, out])?);
    l.graph.tap(at, Stage::PostFfnResidual, &[residual])?;
    Ok(residual)
}
