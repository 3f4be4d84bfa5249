//! kernels/router.cu.

use super::{Emit, MAX_EXPERTS, int};
use crate::driver::Param;
use moe_run_graph::ir::{GateKind, Node, RouterAttrs};
use moe_run_runtime::error::BackendError;

/// Warps of a block, a token each.
const TOKENS_PER_BLOCK: usize = 4;

/// The most experts a token, one a lane: kernels/common/top_k.cuh.
const MAX_EXPERTS_PER_TOKEN: usize = 32;

/// What a choice asks for that the kernels lack.
pub(super) fn lacking(attrs: &RouterAttrs) -> Option<String> {
    let RouterAttrs {
        num_experts,
        num_experts_per_tok,
        gate: GateKind::Softmax | GateKind::Sigmoid | GateKind::SoftmaxAfterTopK,
        norm_topk_prob: _,
        scale: _,
        selection_bias: _,
        groups,
        expert_scale,
    } = *attrs;
    if expert_scale.is_some() {
        return Some("a scale of each expert".into());
    }
    if let Some(groups) = groups {
        return Some(format!("the best {} of {} groups of experts", groups.topk_group, groups.n_group));
    }
    (num_experts > MAX_EXPERTS || num_experts_per_tok > MAX_EXPERTS_PER_TOKEN).then(|| {
        format!(
            "{num_experts_per_tok} of {num_experts} experts; wanted at most {MAX_EXPERTS_PER_TOKEN} of {MAX_EXPERTS}"
        )
    })
}

/// The gate's number in kernels/common/top_k.cuh.
pub(crate) fn gate_code(gate: GateKind) -> Param {
    Param::I32(match gate {
        GateKind::Softmax => 0,
        GateKind::Sigmoid => 1,
        GateKind::SoftmaxAfterTopK => 2,
    })
}

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, attrs: &RouterAttrs) -> Result<(), BackendError> {
    let tokens = emit.rows(node.inputs[0]);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.weights.opt_vector(attrs.selection_bias),
        emit.value(node.outputs[0])?,
        emit.value(node.outputs[1])?,
        int(tokens),
        int(attrs.num_experts),
        int(attrs.num_experts_per_tok),
        gate_code(attrs.gate),
        int(usize::from(attrs.norm_topk_prob)),
        Param::F32(attrs.scale),
    ];
    emit.push("router", [tokens.div_ceil(TOKENS_PER_BLOCK), 1, 1], 32 * TOKENS_PER_BLOCK as u32, 0, params);
    Ok(())
}
