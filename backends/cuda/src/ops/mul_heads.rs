//! kernels/mul_heads.cu.

use super::{Emit, int, threads_for};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node) -> Result<(), BackendError> {
    let n = emit.elems(node.outputs[0]);
    let head_width = emit.width(node.inputs[0])? / emit.width(node.inputs[1])?.max(1);
    let threads = threads_for(n);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.value(node.outputs[0])?,
        int(n),
        int(head_width),
    ];
    emit.push("mul_heads", [n.div_ceil(threads as usize), 1, 1], threads, 0, params);
    Ok(())
}
