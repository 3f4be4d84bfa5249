//! kernels/get_rows.cu.

use super::{Emit, int, threads_for};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node) -> Result<(), BackendError> {
    let n = emit.width(node.inputs[0])?;
    let threads = threads_for(n);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.value(node.outputs[0])?,
        int(n),
        int(emit.rows(node.inputs[0])),
    ];
    let rows = emit.elems(node.inputs[1]);
    emit.push("get_rows", [n.div_ceil(threads as usize), rows, 1], threads, 0, params);
    Ok(())
}
