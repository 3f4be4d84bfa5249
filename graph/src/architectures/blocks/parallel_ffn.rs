//! An MLP, and experts beside it where the layer has some, each between norms of its own; a norm of their sum; residual.

use super::dense_ffn::{SwiGluNames, swiglu};
use super::ffn::{self, FfnSpec};
use super::{dense_ffn, moe, norm};
use crate::architectures::{LowerError, Lowering, only};
use crate::config::{FfnConfig, MoeConfig};
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{LayerIdx, Op, Stage, ValueId};

/// Appends a layer's feed-forward part to the residual stream `x` [T, D].
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    spec: &FfnSpec,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let normed = norm::lower(l, at, "ffn_norm", &blk(layer.index(), spec.norm), x, 1)?;
    l.graph.tap(at, Stage::FfnNorm, &[normed])?;
    let out = match l.config.layers[layer.index()].ffn.clone() {
        FfnConfig::Absent => return Ok(x),
        FfnConfig::Dense { intermediate_size } => {
            dense_ffn::lower(l, layer, normed, intermediate_size, spec.activation)?.scaled
        }
        FfnConfig::Moe(config) => beside(l, layer, [x, normed], &config, spec)?,
    };
    let out = ffn::post_norm(l, layer, out, spec)?;
    Ok(only(l.graph.push(at, "ffn_residual", Op::Add, &[x, out])?))
}

/// The MLP of the normed input, and the experts of the residual stream.
fn beside(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    [x, normed]: [ValueId; 2],
    config: &MoeConfig,
    spec: &FfnSpec,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);
    let names = SwiGluNames {
        gate: ("mlp_gate_proj", tensor::FFN_GATE),
        up: ("mlp_up_proj", tensor::FFN_UP),
        act: "mlp_act",
        down: (["mlp_down_proj", "mlp_down_proj_unscaled"], tensor::FFN_DOWN),
        stages: [
            Stage::ShexpFfnGate,
            Stage::ShexpFfnUp,
            Stage::ShexpFfnSilu,
            Stage::ShexpFfnSwigl,
            Stage::FfnOut,
        ],
    };
    let width = config.shared_expert_intermediate_size.unwrap_or(0);
    let mlp = swiglu(l, layer, normed, width, spec.activation, &names)?.scaled;
    let mlp = norm::lower(l, at, "post_ffn_norm_1", &file(tensor::POST_FFW_NORM_1), mlp, 1)?;
    l.graph.tap(at, Stage::PostFfnNorm1, &[mlp])?;

    let normed = norm::lower(l, at, "ffn_norm_2", &file(tensor::PRE_FFW_NORM_2), x, 1)?;
    l.graph.tap(at, Stage::FfnNorm2, &[normed])?;
    let choice = moe::route(l, layer, x, config, spec)?;
    let act = moe::gate_up(l, layer, normed, choice.ids, config, spec)?;
    let chosen = moe::down(l, layer, act, choice.ids, config, spec)?;
    l.graph.tap(at, Stage::MoeExpertOut, &[chosen])?;
    let routed = moe::combine(l, layer, chosen, choice)?.scaled;
    l.graph.tap(at, Stage::MoeFfnOut, &[routed])?;
    let routed = norm::lower(l, at, "post_ffn_norm_2", &file(tensor::POST_FFW_NORM_2), routed, 1)?;
    l.graph.tap(at, Stage::PostFfnNorm2, &[routed])?;
    Ok(only(l.graph.push(at, "add_experts", Op::Add, &[mlp, routed])?))
}
