//! Router, the chosen experts' gated MLP, with biases where there are some, weighted sum, and the shared expert where there is one.

use super::branch::Branch;
use super::ffn::{FfnSpec, RouterInput};
use super::{chunk_experts, shared_expert};
use crate::architectures::{LowerError, Lowering, only};
use crate::config::MoeConfig;
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{GateKind, GivenExpertsAttrs, LayerIdx, Op, PointwiseFn, RouterAttrs, Stage, ValueId};

/// Which experts a token takes, and how much of each.
#[derive(Debug, Clone, Copy)]
pub(in crate::architectures) struct Choice {
    /// [T, K].
    pub ids: ValueId,
    /// [T, K].
    pub weights: Branch,
    /// What was chosen by, [T, E].
    pub logits: ValueId,
}

/// Appends the router, which reads `x` [T, D].
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub(in crate::architectures) fn route(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    mut x: ValueId,
    config: &MoeConfig,
    spec: &FfnSpec,
) -> Result<Choice, LowerError> {
    let (num_experts, hidden_size) = (config.num_experts, l.config.hidden_size);
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);
    let mut scale = None;
    if spec.router_input == RouterInput::OwnNorm {
        let weight = Some(l.vector(&file(tensor::FFN_GATE_INP_SCALE), hidden_size)?);
        let op = Op::RmsNorm { weight, eps: l.config.rms_norm_eps, heads: 1 };
        x = only(l.graph.push(at, "router_norm", op, &[x])?);
        scale = Some((1.0 / (hidden_size as f64).sqrt()) as f32);
    }
    let weight = l.matrix(&file(tensor::FFN_GATE_INP), num_experts, hidden_size)?;
    let bias = l.opt_vector(&file(tensor::FFN_GATE_INP_BIAS), num_experts, spec.router_bias)?;
    let logits = l.graph.push(at, "router", Op::MatMul { weight, bias, scale }, &[x])?;
    l.graph.tap(at, Stage::MoeLogits, &logits)?;
    if config.by_token {
        return of_token(l, layer, logits[0], config);
    }
    let attrs = RouterAttrs {
        num_experts,
        num_experts_per_tok: config.num_experts_per_tok,
        gate: config.gate,
        norm_topk_prob: config.norm_topk_prob,
        scale: config.scale,
        selection_bias: l.opt_vector(&file(spec.selection_bias_name), num_experts, spec.selection_bias)?,
        groups: config.groups,
        expert_scale: l.opt_vector(&file(tensor::FFN_DOWN_EXPS_SCALE), num_experts, spec.expert_scale)?,
    };
    // The model's residual scale is a factor of the weights: their sum has it then.
    let op = |residual: Option<f32>| {
        Op::Router(RouterAttrs { scale: attrs.scale * residual.unwrap_or(1.0), ..attrs.clone() })
    };
    let names = ["router_topk", "router_topk_unscaled"];
    let routed = Branch::begin(l, at, names, op, &logits)?;
    let choice = Choice { ids: routed[0].scaled, weights: routed[1], logits: logits[0] };
    l.graph.tap(at, Stage::MoeTopkIds, &[choice.ids])?;
    l.graph.tap(at, Stage::MoeRouter, &[choice.weights.plain])?;
    Ok(choice)
}

/// The experts that a table gives a token, weighed by their logits.
fn of_token(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    logits: ValueId,
    config: &MoeConfig,
) -> Result<Choice, LowerError> {
    let at = Some(layer);
    let shape = [l.config.vocab_size, config.num_experts_per_tok];
    let table = l.ids(&blk(layer.index(), tensor::FFN_GATE_TID2EID), &shape, config.num_experts)?;
    let attrs = GivenExpertsAttrs {
        num_experts: config.num_experts,
        num_experts_per_tok: config.num_experts_per_tok,
        gate: config.gate,
        norm_topk_prob: config.norm_topk_prob,
        scale: config.scale,
        divisor: 1,
        table: Some(table),
    };
    let op = |residual: Option<f32>| {
        let scale = attrs.scale * residual.unwrap_or(1.0);
        Op::GivenExperts(GivenExpertsAttrs { scale, ..attrs.clone() })
    };
    let inputs = [logits, l.graph.inputs.tokens];
    let names = ["experts_of_token", "experts_of_token_unscaled"];
    let given = Branch::begin(l, at, names, op, &inputs)?;
    l.graph.tap(at, Stage::MoeTopkIds, &[given[0].scaled])?;
    l.graph.tap(at, Stage::MoeRouter, &[given[1].plain])?;
    Ok(Choice { ids: given[0].scaled, weights: given[1], logits })
}

/// Appends the chosen experts of the normed input [T, D] and the shared expert.
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub(super) fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    choice: Choice,
    config: &MoeConfig,
    spec: &FfnSpec,
) -> Result<Branch, LowerError> {
    let at = Some(layer);
    let (read, choice) = match spec.weights_on_input {
        true => weighted_input(l, layer, normed, choice, config)?,
        false => (normed, choice),
    };
    let act = gate_up(l, layer, read, choice.ids, config, spec)?;
    // Before the sum, to which it is added.
    let shared = match config.shared_expert_intermediate_size {
        Some(width) => {
            let gate = spec.shared_expert_gate;
            Some(shared_expert::lower(l, layer, normed, width, gate, spec.activation)?)
        }
        None => None,
    };
    let chosen = down(l, layer, act, choice.ids, config, spec)?;
    l.graph.tap(at, Stage::FfnOut, &[chosen])?;
    let mut combined = combine(l, layer, chosen, choice)?;
    if let Some(shared) = shared {
        l.graph.tap(at, Stage::MoeRoutedOut, &[combined.plain])?;
        let operands = [[combined.scaled, shared.scaled], [combined.plain, shared.plain]];
        let names = ["add_shared_expert", "add_shared_expert_unscaled"];
        combined = Branch::through(l, at, names, &Op::Add, operands)?;
        if spec.mean_with_shared_expert {
            let half = Op::Pointwise { function: PointwiseFn::Scale(0.5) };
            let operands = [[combined.scaled], [combined.plain]];
            combined = Branch::through(l, at, ["expert_mean", "expert_mean_unscaled"], &half, operands)?;
        }
    }
    if let Some(chunks) = &config.chunks {
        combined = chunk_experts::lower(l, layer, combined, choice, config, chunks, spec)?;
    }
    l.graph.tap(at, Stage::MoeFfnOut, &[combined.plain])?;
    Ok(combined)
}

/// What the one chosen expert reads, the normed input times its weight, and the choice under which its output counts as it
/// is: a softmax over one, which is 1.
fn weighted_input(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    choice: Choice,
    config: &MoeConfig,
) -> Result<(ValueId, Choice), LowerError> {
    let at = Some(layer);
    let read =
        only(l.graph.push(at, "weighted_input", Op::ExpertCombine, &[normed, choice.weights.plain])?);
    let attrs = RouterAttrs {
        num_experts: config.num_experts,
        num_experts_per_tok: 1,
        gate: GateKind::SoftmaxAfterTopK,
        norm_topk_prob: false,
        scale: 1.0,
        selection_bias: None,
        groups: None,
        expert_scale: None,
    };
    let op =
        |residual: Option<f32>| Op::Router(RouterAttrs { scale: residual.unwrap_or(1.0), ..attrs.clone() });
    let names = ["expert_output_weight", "expert_output_weight_unscaled"];
    let ones = Branch::begin(l, at, names, op, &[choice.logits])?;
    Ok((read, Choice { weights: ones[1], ..choice }))
}

/// What goes into each chosen expert's down_proj [T, K, F].
pub(super) fn gate_up(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    ids: ValueId,
    config: &MoeConfig,
    spec: &FfnSpec,
) -> Result<ValueId, LowerError> {
    let (num_experts, width) = (config.num_experts, config.moe_intermediate_size);
    let hidden_size = l.config.hidden_size;
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);
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
    Ok(act[1])
}

/// Each chosen expert's output [T, K, D].
pub(super) fn down(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    act: ValueId,
    ids: ValueId,
    config: &MoeConfig,
    spec: &FfnSpec,
) -> Result<ValueId, LowerError> {
    let (num_experts, width) = (config.num_experts, config.moe_intermediate_size);
    let (at, hidden_size) = (Some(layer), l.config.hidden_size);
    let file = |rest: &str| blk(layer.index(), rest);
    let weight = l.expert_matrix(&file(tensor::FFN_DOWN_EXPS), num_experts, hidden_size, width)?;
    let bias =
        l.opt_floats(&file(tensor::FFN_DOWN_EXPS_BIAS), &[num_experts, hidden_size], spec.expert_bias)?;
    Ok(only(l.graph.push(at, "down_proj", Op::ExpertMatMul { weight, bias }, &[act, ids])?))
}

/// The weighted sum of what the chosen experts gave.
pub(in crate::architectures) fn combine(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    chosen: ValueId,
    choice: Choice,
) -> Result<Branch, LowerError> {
    let operands = [choice.weights.scaled, choice.weights.plain].map(|weights| [chosen, weights]);
    Branch::through(l, Some(layer), ["combine", "combine_unscaled"], &Op::ExpertCombine, operands)
}
