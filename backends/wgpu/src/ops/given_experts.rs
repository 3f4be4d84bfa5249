//! GivenExperts: what the logits weigh experts by that others' ids give, one workgroup a token.

use crate::emit::{Emitter, Extent, Grid, Rows};
use moe_run_graph::ir::{GateKind, GivenExpertsAttrs, Node};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;

pub(super) fn lacking(attrs: &GivenExpertsAttrs) -> Option<String> {
    let GivenExpertsAttrs {
        num_experts: _,
        num_experts_per_tok,
        gate,
        norm_topk_prob: _,
        scale: _,
        divisor: _,
        table: _,
    } = attrs;
    if *num_experts_per_tok > LANES as usize {
        return Some(format!("{num_experts_per_tok} experts a token, wanted at most {LANES}"));
    }
    gate_code(*gate).is_none().then(|| format!("a gate {gate:?}"))
}

/// The gate as the shader numbers it.
fn gate_code(gate: GateKind) -> Option<u32> {
    match gate {
        GateKind::Softmax => Some(0),
        GateKind::Sigmoid => Some(1),
        GateKind::SqrtSoftplus => Some(4),
        GateKind::SoftmaxAfterTopK | GateKind::SparseMixer => None,
    }
}

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, attrs: &GivenExpertsAttrs) -> Result<(), BackendError> {
    let (x, given) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?);
    let given_per_token = match attrs.table {
        Some(table) => e.plan.graph.weight(table).shape.last().map_or(0, |n| *n as u32),
        None => e.width(node, node.inputs[1])?,
    };
    let (ids, weights) = (e.output(node.outputs[0]), e.output(node.outputs[1]));
    let gate = gate_code(attrs.gate).ok_or_else(|| BackendError::mismatch(node.op.stem()))?;
    let variant = e.variant("given_experts", &[("LANES", LANES)]);
    let params = [
        ("x", x.into()),
        ("given", given.into()),
        ("table", e.small(attrs.table)?.into()),
        ("ids", ids.into()),
        ("weights", weights.into()),
        ("num_experts", (attrs.num_experts as u32).into()),
        ("given_per_token", given_per_token.into()),
        ("experts_per_token", (attrs.num_experts_per_tok as u32).into()),
        ("gate", gate.into()),
        ("normalise", u32::from(attrs.norm_topk_prob).into()),
        ("scale", attrs.scale.into()),
        ("divisor", (attrs.divisor as u32).into()),
    ];
    let tokens = Extent::Rows { rows: Rows::of(e.shape(node.outputs[0])), times: 1, over: 1 };
    e.push(variant, Grid::new(tokens, Extent::Fixed(1), Extent::Fixed(1)), &params);
    Ok(())
}
