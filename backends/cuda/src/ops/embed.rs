//! kernels/embed.cu.

use super::{Emit, int, threads_for};
use crate::driver::Param;
use moe_run_graph::ir::{Node, WeightSlice};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(
    emit: &mut Emit<'_>,
    node: &Node,
    table: &WeightSlice,
    scale: Option<f32>,
) -> Result<(), BackendError> {
    let matrix = emit.weights.matrix(emit.graph, table);
    let tokens = emit.elems(node.inputs[0]);
    let groups = matrix.inner.div_ceil(32);
    let threads = threads_for(groups);
    let params = vec![
        matrix.code(),
        matrix.data,
        Param::U64(matrix.row_bytes),
        emit.value(node.inputs[0])?,
        emit.value(node.outputs[0])?,
        int(matrix.inner),
        int(matrix.rows),
        Param::F32(scale.unwrap_or(1.0)),
    ];
    emit.push("embed", [groups.div_ceil(threads as usize), tokens, 1], threads, 0, params);
    Ok(())
}
