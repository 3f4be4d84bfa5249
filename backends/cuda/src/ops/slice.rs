//! kernels/slice.cu.

use super::{Emit, int, threads_for};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

pub(super) fn emit(
    emit: &mut Emit<'_>,
    node: &Node,
    heads: usize,
    start: usize,
    len: usize,
) -> Result<(), BackendError> {
    let n = emit.elems(node.outputs[0]);
    let width = emit.width(node.inputs[0])? / heads.max(1);
    let threads = threads_for(n);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.outputs[0])?,
        int(n),
        int(width),
        int(start),
        int(len),
    ];
    emit.push("slice", [n.div_ceil(threads as usize), 1, 1], threads, 0, params);
    Ok(())
}
