//! Norm, router, the chosen experts' SwiGLU, weighted sum, residual.

use super::{dense_ffn, norm};
use crate::architectures::{LowerError, Lowering, only};
use crate::config::FfnConfig;
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{ActivationFn, LayerIdx, Op, RouterAttrs, Stage, ValueId};

/// Appends a layer of experts to the residual stream `x` [T, D]; a dense layer where the configuration says so.
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower(l: &mut Lowering<'_>, layer: LayerIdx, x: ValueId) -> Result<ValueId, LowerError> {
    let FfnConfig::Moe {
        num_experts,
        num_experts_per_tok,
        moe_intermediate_size,
        gate,
        norm_topk_prob,
        scale,
    } = l.config.layers[layer.index()].ffn
    else {
        return dense_ffn::lower(l, layer, x);
    };
    let hidden_size = l.config.hidden_size;
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);

    let normed = norm::lower(l, at, "ffn_norm", &file(tensor::FFN_NORM), x, 1)?;
    l.graph.tap(at, Stage::FfnNorm, &[normed])?;

    let weight = l.matrix(&file(tensor::FFN_GATE_INP), num_experts, hidden_size)?;
    let logits = l.graph.push(at, "router", Op::MatMul { weight, bias: None, scale: None }, &[normed])?;
    l.graph.tap(at, Stage::MoeLogits, &logits)?;
    let attrs =
        RouterAttrs { num_experts, num_experts_per_tok, gate, norm_topk_prob, scale, selection_bias: None };
    let routed = l.graph.push(at, "router_topk", Op::Router(attrs), &logits)?;
    let (ids, weights) = (routed[0], routed[1]);
    l.graph.tap(at, Stage::MoeTopkIds, &[ids])?;
    l.graph.tap(at, Stage::MoeRouter, &[weights])?;

    let parts = [tensor::FFN_GATE_EXPS, tensor::FFN_UP_EXPS].map(|rest| (file(rest), moe_intermediate_size));
    let matrices = l.matrices(&file(tensor::FFN_GATE_UP_EXPS), &parts, Some(num_experts), hidden_size)?;
    let mut gate_up = [normed; 2];
    for ((out, name), weight) in gate_up.iter_mut().zip(["gate_proj", "up_proj"]).zip(matrices) {
        *out = only(l.graph.push(at, name, Op::ExpertMatMul { weight, bias: None }, &[normed, ids])?);
    }
    let [gate, up] = gate_up;
    l.graph.tap(at, Stage::FfnGate, &[gate])?;
    l.graph.tap(at, Stage::FfnUp, &[up])?;
    let act = l.graph.push(at, "swiglu", Op::GatedAct { activation: ActivationFn::Silu }, &[gate, up])?;
    l.graph.tap(at, Stage::FfnSilu, &[act[0]])?;
    l.graph.tap(at, Stage::FfnSwigl, &[act[1]])?;
    let weight =
        l.expert_matrix(&file(tensor::FFN_DOWN_EXPS), num_experts, hidden_size, moe_intermediate_size)?;
    let out = only(l.graph.push(at, "down_proj", Op::ExpertMatMul { weight, bias: None }, &[act[1], ids])?);
    l.graph.tap(at, Stage::FfnOut, &[out])?;
    let combined = only(l.graph.push(at, "combine", Op::ExpertCombine, &[out, weights])?);
    l.graph.tap(at, Stage::MoeFfnOut, &[combined])?;
    let residual = only(l.graph.push(at, "ffn_residual", Op::Add, &[x, combined])?);
    l.graph.tap(at, Stage::PostFfnResidual, &[residual])?;
    Ok(residual)
}
