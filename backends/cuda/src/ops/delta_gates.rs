//! kernels/delta_gates.cu.

use super::{Emit, int, threads_for};
use crate::driver::Param;
use moe_run_graph::ir::{Node, WeightId};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(
    emit: &mut Emit<'_>,
    node: &Node,
    a: WeightId,
    dt_bias: WeightId,
    bound: Option<f32>,
) -> Result<(), BackendError> {
    let n = emit.elems(node.inputs[1]);
    let heads = emit.width(node.inputs[0])?;
    let of_head = emit.width(node.inputs[1])? / heads.max(1);
    let threads = threads_for(n);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.weights.vector(a),
        emit.weights.vector(dt_bias),
        emit.value(node.outputs[0])?,
        emit.value(node.outputs[1])?,
        int(n),
        int(heads),
        int(of_head),
        // 0: none.
        Param::F32(bound.unwrap_or(0.0)),
    ];
    emit.push("delta_gates", [n.div_ceil(threads as usize), 1, 1], threads, 0, params);
    Ok(())
}
