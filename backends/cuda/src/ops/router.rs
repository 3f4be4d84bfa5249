//! kernels/router.cu.

use super::{Emit, MAX_EXPERTS, int};
use crate::driver::Param;
use moe_run_graph::ir::{ExpertGroups, GateKind, GroupScore, Node, RouterAttrs};
use moe_run_runtime::error::BackendError;

/// Warps of a block, a token each.
const TOKENS_PER_BLOCK: usize = 4;

/// The most experts a token, one a lane: kernels/common/top_k.cuh.
const MAX_EXPERTS_PER_TOKEN: usize = 32;

/// The most groups of experts, one a lane: kernels/common/top_k.cuh.
const MAX_GROUPS: usize = 32;

/// What a choice asks for that the kernels lack.
pub(super) fn lacking(attrs: &RouterAttrs) -> Option<String> {
    let RouterAttrs {
        num_experts,
        num_experts_per_tok,
        gate: _,
        norm_topk_prob: _,
        scale: _,
        selection_bias: _,
        groups,
        expert_scale: _,
    } = *attrs;
    if let Some(ExpertGroups { n_group, topk_group: _, score: _ }) = groups
        && n_group > MAX_GROUPS
    {
        return Some(format!("{n_group} groups of experts; wanted at most {MAX_GROUPS}"));
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
        GateKind::SparseMixer => 3,
        GateKind::SqrtSoftplus => 4,
    })
}

/// How many groups of experts there are, how many are chosen from, and whether their best two rank them: for
/// kernels/common/top_k.cuh.
pub(crate) fn group_params(attrs: &RouterAttrs) -> [usize; 3] {
    match attrs.groups {
        None => [1, 1, 0],
        Some(ExpertGroups { n_group, topk_group, score }) => {
            [n_group, topk_group, usize::from(score == GroupScore::BestTwo)]
        }
    }
}

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, attrs: &RouterAttrs) -> Result<(), BackendError> {
    let tokens = emit.rows(node.inputs[0]);
    let [n_group, topk_group, best_two] = group_params(attrs);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.weights.opt_vector(attrs.selection_bias),
        emit.weights.opt_vector(attrs.expert_scale),
        emit.value(node.outputs[0])?,
        emit.value(node.outputs[1])?,
        int(tokens),
        int(attrs.num_experts),
        int(attrs.num_experts_per_tok),
        gate_code(attrs.gate),
        int(usize::from(attrs.norm_topk_prob)),
        Param::F32(attrs.scale),
        int(n_group),
        int(topk_group),
        int(best_two),
    ];
    emit.push("router", [tokens.div_ceil(TOKENS_PER_BLOCK), 1, 1], 32 * TOKENS_PER_BLOCK as u32, 0, params);
    Ok(())
}
