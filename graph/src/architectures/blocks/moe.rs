//! Router, the chosen experts' SwiGLU, with biases where there are some, weighted sum, and the shared expert where there is one.

use super::branch::Branch;
use super::ffn::FfnSpec;
use super::shared_expert;
use crate::architectures::{LowerError, Lowering, only};
use crate::config::MoeConfig;
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{LayerIdx, Op, RouterAttrs, Stage, ValueId};

/// Appends the experts of the normed input [T, D].
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
    let (num_experts, width) = (config.num_experts, config.moe_intermediate_size);
    let hidden_size = l.config.hidden_size;
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);

    let weight = l.matrix(&file(tensor::FFN_GATE_INP), num_experts, hidden_size)?;
    let bias = l.opt_vector(&file(tensor::FFN_GATE_INP_BIAS), num_experts, spec.router_bias)?;
    let logits = l.graph.push(at, "router", Op::MatMul { weight, bias, scale: None }, &[normed])?;
    l.graph.tap(at, Stage::MoeLogits, &logits)?;
    let attrs = RouterAttrs {
        num_experts,
        num_experts_per_tok: config.num_experts_per_tok,
        gate: config.gate,
        norm_topk_prob: config.norm_topk_prob,
        scale: config.scale,
        selection_bias: l.opt_vector(&file(spec.selection_bias_name), num_experts, spec.selection_bias)?,
        expert_scale: None,
        groups: config.groups,
    };
    // The model's residual scale is a factor of the weights: their sum has it then.
    let op = |residual: Option<f32>| {
        Op::Router(RouterAttrs { scale: attrs.scale * residual.unwrap_or(1.0), ..attrs.clone() })
    };
    let names = ["router_topk", "router_topk_unscaled"];
    let routed = Branch::begin(l, at, names, op, &logits)?;
    let (ids, weights) = (routed[0].scaled, routed[1]);
    l.graph.tap(at, Stage::MoeTopkIds, &[ids])?;
    l.graph.tap(at, Stage::MoeRouter, &[weights.plain])?;

    let parts = [tensor::FFN_GATE_EXPS, tensor::FFN_UP_EXPS].map(|rest| (file(rest), width));
    let matrices = l.matrices(&file(tensor::FFN_GATE_UP_EXPS), &parts, Some(num_experts), hidden_size)?;
    l.refuse(&file(tensor::FFN_GATE_UP_EXPS_BIAS), "biases of gate and up in one tensor")?;
    let names = [("gate_proj", tensor::FFN_GATE_EXPS_BIAS), ("up_proj", tensor::FFN_UP_EXPS_BIAS)];
    let mut gate_up = [normed; 2];
    for ((out, (name, bias)), weight) in gate_up.iter_mut().zip(names).zip(matrices) {
        let bias = l.opt_floats(&file(bias), &[num_experts, width], spec.expert_bias)?;
        *out = only(l.graph.push(at, name, Op::ExpertMatMul { weight, bias }, &[normed, ids])?);
    }
    let [gate, up] = gate_up;
    l.graph.tap(at, Stage::FfnGate, &[gate])?;
    l.graph.tap(at, Stage::FfnUp, &[up])?;
    let act = l.graph.push(at, "swiglu", Op::GatedAct { activation: spec.expert_activation }, &[gate, up])?;
    l.graph.tap(at, Stage::FfnSilu, &[act[0]])?;
    l.graph.tap(at, Stage::FfnSwigl, &[act[1]])?;
    // Before the sum, to which it is added.
    let shared = match config.shared_expert_intermediate_size {
        Some(width) => Some(shared_expert::lower(l, layer, normed, width, spec.shared_expert_gate)?),
        None => None,
    };
    let weight = l.expert_matrix(&file(tensor::FFN_DOWN_EXPS), num_experts, hidden_size, width)?;
    let bias =
        l.opt_floats(&file(tensor::FFN_DOWN_EXPS_BIAS), &[num_experts, hidden_size], spec.expert_bias)?;
    let out = only(l.graph.push(at, "down_proj", Op::ExpertMatMul { weight, bias }, &[act[1], ids])?);
    l.graph.tap(at, Stage::FfnOut, &[out])?;
    let operands = [weights.scaled, weights.plain].map(|weights| [out, weights]);
    let mut combined = Branch::through(l, at, ["combine", "combine_unscaled"], &Op::ExpertCombine, operands)?;
    if let Some(shared) = shared {
        l.graph.tap(at, Stage::MoeRoutedOut, &[combined.plain])?;
        let operands = [[combined.scaled, shared.scaled], [combined.plain, shared.plain]];
        let names = ["add_shared_expert", "add_shared_expert_unscaled"];
        combined = Branch::through(l, at, names, &Op::Add, operands)?;
    }
    l.graph.tap(at, Stage::MoeFfnOut, &[combined.plain])?;
    Ok(combined)
}
