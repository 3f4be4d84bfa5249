//! kernels/rms_norm.cu.

use super::{Emit, int, threads_for};
use crate::driver::Param;
use moe_run_graph::ir::{Node, WeightId};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(
    emit: &mut Emit<'_>,
    node: &Node,
    weight: Option<WeightId>,
    eps: f32,
    heads: usize,
) -> Result<(), BackendError> {
    let rows = emit.rows(node.inputs[0]) * heads;
    let n = emit.width(node.inputs[0])? / heads.max(1);
    // One weight for all heads, or a part of it for each.
    let elems = weight.map_or(n, |weight| emit.graph.weight(weight).shape.iter().product());
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.weights.opt_vector(weight),
        emit.value(node.outputs[0])?,
        Param::F32(eps),
        int(n),
        int(elems / n.max(1)),
    ];
    emit.push("rms_norm", [rows, 1, 1], threads_for(n), 0, params);
    Ok(())
}
