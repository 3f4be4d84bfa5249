//! kernels/rms_norm.cu.

use super::{Emit, int, threads_for};
use crate::driver::Param;
use moe_run_graph::ir::{Node, WeightId};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(
    emit: &mut Emit<'_>,
    node: &Node,
    weight: WeightId,
    eps: f32,
    heads: usize,
) -> Result<(), BackendError> {
    let rows = emit.rows(node.inputs[0]) * heads;
    let n = emit.width(node.inputs[0])? / heads.max(1);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.weights.vector(weight),
        emit.value(node.outputs[0])?,
        Param::F32(eps),
        int(n),
    ];
    emit.push("rms_norm", [rows, 1, 1], threads_for(n), 0, params);
    Ok(())
}
