//! The expert that every token takes beside the chosen ones; in some models a gate weighs it.

use super::branch::Branch;
use super::dense_ffn::{SwiGluNames, swiglu};
use crate::architectures::lowering::Presence;
use crate::architectures::{LowerError, Lowering};
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{ActivationFn, GateKind, LayerIdx, Op, RouterAttrs, Stage, ValueId};

/// Appends the shared expert of the normed input [T, D], `width` wide, times its gate where there is one.
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub(super) fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    width: usize,
    gate: Presence,
    activation: ActivationFn,
) -> Result<Branch, LowerError> {
    let at = Some(layer);
    let names = SwiGluNames {
        gate: ("shared_expert_gate_proj", tensor::FFN_GATE_SHEXP),
        up: ("shared_expert_up_proj", tensor::FFN_UP_SHEXP),
        act: "shared_expert_swiglu",
        down: (["shared_expert_down_proj", "shared_expert_down_proj_unscaled"], tensor::FFN_DOWN_SHEXP),
        stages: [
            Stage::ShexpFfnGate,
            Stage::ShexpFfnUp,
            Stage::ShexpFfnSilu,
            Stage::ShexpFfnSwigl,
            Stage::ShexpOut,
        ],
    };
    let out = swiglu(l, layer, normed, width, activation, &names)?;
    let gate_name = blk(layer.index(), tensor::FFN_GATE_INP_SHEXP);
    if !l.wants(&gate_name, gate) {
        return Ok(out);
    }
    // A router over one expert that is always chosen: its weight is the sigmoid of its logit.
    let weight = l.matrix(&gate_name, 1, l.config.hidden_size)?;
    let op = Op::MatMul { weight, bias: None, scale: None };
    let logit = l.graph.push(at, "shared_expert_gate", op, &[normed])?;
    l.graph.tap(at, Stage::ShexpLogit, &logit)?;
    let attrs = RouterAttrs {
        num_experts: 1,
        num_experts_per_tok: 1,
        gate: GateKind::Sigmoid,
        norm_topk_prob: false,
        scale: 1.0,
        selection_bias: None,
        expert_scale: None,
        groups: None,
    };
    let routed = l.graph.push(at, "shared_expert_sigmoid", Op::Router(attrs), &logit)?;
    l.graph.tap(at, Stage::ShexpGate, &[routed[1]])?;
    let operands = [out.scaled, out.plain].map(|out| [out, routed[1]]);
    let names = ["shared_expert_gated", "shared_expert_gated_unscaled"];
    let gated = Branch::through(l, at, names, &Op::ExpertCombine, operands)?;
    l.graph.tap(at, Stage::ShexpGated, &[gated.plain])?;
    Ok(gated)
}
