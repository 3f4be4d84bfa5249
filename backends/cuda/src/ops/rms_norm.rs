//! kernels/rms_norm.cu.

use super::{Emit, int, threads_for};
use crate::driver::Param;
use moe_run_graph::ir::{Node, WeightId};
use moe_run_runtime::error::BackendError;

/// Also for a post-norm with the residual stream.
pub(crate) const KERNEL: &str = "rms_norm";

pub(super) fn emit(
    emit: &mut Emit<'_>,
    node: &Node,
    weight: Option<WeightId>,
    eps: f32,
    heads: usize,
) -> Result<(), BackendError> {
    let rows = emit.rows(node.inputs[0]) * heads;
    let n = emit.width(node.inputs[0])? / heads.max(1);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.weights.opt_vector(weight),
        emit.value(node.outputs[0])?,
        Param::F32(eps),
        int(n),
        int(weight_parts(emit, weight, n)),
        Param::NULL,
        Param::NULL,
    ];
    emit.push(KERNEL, [rows, 1, 1], threads_for(n), 0, params);
    Ok(())
}

/// How many heads of `n` elements have a part of the weight each: 1 where all share it.
pub(crate) fn weight_parts(emit: &Emit<'_>, weight: Option<WeightId>, n: usize) -> usize {
    let elems = weight.map_or(n, |weight| emit.graph.weight(weight).shape.iter().product());
    elems / n.max(1)
}
