//! Router, the chosen experts without a gate (up_proj, squared ReLU, down_proj), in some models in a narrower space than the
//! hidden one, their weighted sum, and a shared expert of the same form.

use super::branch::Branch;
use super::ffn::FfnSpec;
use crate::architectures::{LowerError, Lowering, only};
use crate::config::MoeConfig;
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{LayerIdx, Op, PointwiseFn, RouterAttrs, Stage, ValueId, WeightSlice};

const RELU_SQUARED: Op = Op::Pointwise { function: PointwiseFn::ReluSquared };

fn product(weight: WeightSlice) -> Op {
    Op::MatMul { weight, bias: None, scale: None }
}

/// Appends the experts of the normed input [T, D]. The router and the shared expert read it as it is.
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub(super) fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    config: &MoeConfig,
    spec: &FfnSpec,
) -> Result<Branch, LowerError> {
    let (at, hidden_size) = (Some(layer), l.config.hidden_size);
    let file = |rest: &str| blk(layer.index(), rest);
    let (ids, weights) = route(l, layer, normed, config, spec)?;
    let (mut x, mut width) = (normed, hidden_size);
    if let Some(latent_size) = config.latent_size {
        let weight = l.matrix(&file(tensor::FFN_LATENT_DOWN), latent_size, hidden_size)?;
        x = only(l.graph.push(at, "latent_down_proj", product(weight), &[normed])?);
        l.graph.tap(at, Stage::MoeLatentIn, &[x])?;
        width = latent_size;
    }
    let (experts, inner) = (config.num_experts, config.moe_intermediate_size);
    let weight = l.expert_matrix(&file(tensor::FFN_UP_EXPS), experts, inner, width)?;
    let up = only(l.graph.push(at, "up_proj", Op::ExpertMatMul { weight, bias: None }, &[x, ids])?);
    l.graph.tap(at, Stage::FfnUp, &[up])?;
    let act = only(l.graph.push(at, "relu_squared", RELU_SQUARED, &[up])?);
    l.graph.tap(at, Stage::FfnSwigl, &[act])?;
    let weight = l.expert_matrix(&file(tensor::FFN_DOWN_EXPS), experts, width, inner)?;
    let out = only(l.graph.push(at, "down_proj", Op::ExpertMatMul { weight, bias: None }, &[act, ids])?);
    l.graph.tap(at, Stage::FfnOut, &[out])?;
    let operands = [weights.scaled, weights.plain].map(|weights| [out, weights]);
    let mut sum = Branch::through(l, at, ["combine", "combine_unscaled"], &Op::ExpertCombine, operands)?;
    if config.latent_size.is_some() {
        l.graph.tap(at, Stage::MoeLatentOut, &[sum.plain])?;
        let weight = l.matrix(&file(tensor::FFN_LATENT_UP), hidden_size, width)?;
        let names = ["latent_up_proj", "latent_up_proj_unscaled"];
        sum = Branch::through(l, at, names, &product(weight), [[sum.scaled], [sum.plain]])?;
    }
    if let Some(width) = config.shared_expert_intermediate_size {
        l.graph.tap(at, Stage::MoeRoutedOut, &[sum.plain])?;
        let shared = shared_expert(l, layer, normed, width)?;
        let operands = [[sum.scaled, shared.scaled], [sum.plain, shared.plain]];
        let names = ["add_shared_expert", "add_shared_expert_unscaled"];
        sum = Branch::through(l, at, names, &Op::Add, operands)?;
    }
    l.graph.tap(at, Stage::MoeFfnOut, &[sum.plain])?;
    Ok(sum)
}

/// The chosen experts, and how much each counts.
fn route(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    config: &MoeConfig,
    spec: &FfnSpec,
) -> Result<(ValueId, Branch), LowerError> {
    let (at, experts) = (Some(layer), config.num_experts);
    let weight = l.matrix(&blk(layer.index(), tensor::FFN_GATE_INP), experts, l.config.hidden_size)?;
    let logits = l.graph.push(at, "router", product(weight), &[normed])?;
    l.graph.tap(at, Stage::MoeLogits, &logits)?;
    let bias = blk(layer.index(), spec.selection_bias_name);
    let attrs = RouterAttrs {
        num_experts: experts,
        num_experts_per_tok: config.num_experts_per_tok,
        gate: config.gate,
        norm_topk_prob: config.norm_topk_prob,
        scale: config.scale,
        selection_bias: l.opt_vector(&bias, experts, spec.selection_bias)?,
        expert_scale: None,
        groups: config.groups,
    };
    let op = |residual: Option<f32>| {
        Op::Router(RouterAttrs { scale: attrs.scale * residual.unwrap_or(1.0), ..attrs.clone() })
    };
    let routed = Branch::begin(l, at, ["router_topk", "router_topk_unscaled"], op, &logits)?;
    let (ids, weights) = (routed[0].scaled, routed[1]);
    l.graph.tap(at, Stage::MoeTopkIds, &[ids])?;
    l.graph.tap(at, Stage::MoeRouter, &[weights.plain])?;
    Ok((ids, weights))
}

/// The expert that every token takes.
fn shared_expert(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    width: usize,
) -> Result<Branch, LowerError> {
    let (at, hidden_size) = (Some(layer), l.config.hidden_size);
    let weight = l.matrix(&blk(layer.index(), tensor::FFN_UP_SHEXP), width, hidden_size)?;
    let up = only(l.graph.push(at, "shared_expert_up_proj", product(weight), &[normed])?);
    l.graph.tap(at, Stage::ShexpFfnUp, &[up])?;
    let act = only(l.graph.push(at, "shared_expert_relu_squared", RELU_SQUARED, &[up])?);
    l.graph.tap(at, Stage::ShexpFfnSwigl, &[act])?;
    let weight = l.matrix(&blk(layer.index(), tensor::FFN_DOWN_SHEXP), hidden_size, width)?;
    let op = |scale| Op::MatMul { weight: weight.clone(), bias: None, scale };
    let names = ["shared_expert_down_proj", "shared_expert_down_proj_unscaled"];
    let out = Branch::begin(l, at, names, op, &[act])?[0];
    l.graph.tap(at, Stage::ShexpOut, &[out.plain])?;
    Ok(out)
}
