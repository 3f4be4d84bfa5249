//! kernels/given_experts.cu.

use super::router::gate_code;
use super::{Emit, int};
use crate::driver::Param;
use moe_run_graph::ir::{GateKind, GivenExpertsAttrs, Node};
use moe_run_runtime::error::BackendError;

/// Warps of a block, a token each.
const TOKENS_PER_BLOCK: usize = 4;
/// The most experts a token, one a lane.
const MAX_EXPERTS_PER_TOKEN: usize = 32;

/// What the experts ask for that the kernel lacks.
pub(super) fn lacking(attrs: &GivenExpertsAttrs) -> Option<String> {
    let GivenExpertsAttrs {
        num_experts: _,
        num_experts_per_tok,
        gate,
        norm_topk_prob: _,
        scale: _,
        divisor: _,
        table: _,
    } = *attrs;
    match gate {
        GateKind::Softmax | GateKind::Sigmoid | GateKind::SqrtSoftplus => {
            (num_experts_per_tok > MAX_EXPERTS_PER_TOKEN).then(|| {
                format!("{num_experts_per_tok} experts a token; wanted at most {MAX_EXPERTS_PER_TOKEN}")
            })
        }
        GateKind::SoftmaxAfterTopK | GateKind::SparseMixer => Some(format!("a gate {gate:?}")),
    }
}

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, attrs: &GivenExpertsAttrs) -> Result<(), BackendError> {
    let tokens = emit.rows(node.inputs[0]);
    let given = match attrs.table {
        Some(table) => emit.graph.weight(table).shape.last().copied().unwrap_or(0),
        None => emit.width(node.inputs[1])?,
    };
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.weights.opt_vector(attrs.table),
        emit.opt_value(node.outputs[0]),
        emit.opt_value(node.outputs[1]),
        int(tokens),
        int(attrs.num_experts),
        int(given),
        int(attrs.num_experts_per_tok),
        gate_code(attrs.gate),
        int(usize::from(attrs.norm_topk_prob)),
        Param::F32(attrs.scale),
        int(attrs.divisor),
    ];
    let grid = [tokens.div_ceil(TOKENS_PER_BLOCK), 1, 1];
    emit.push("given_experts", grid, 32 * TOKENS_PER_BLOCK as u32, 0, params);
    Ok(())
}
