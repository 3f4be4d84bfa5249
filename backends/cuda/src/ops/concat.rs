//! kernels/concat.cu.

use super::{Emit, int, threads_for};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, heads: usize) -> Result<(), BackendError> {
    let n = emit.elems(node.outputs[0]);
    let threads = threads_for(n);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.value(node.outputs[0])?,
        int(n),
        int(emit.width(node.inputs[0])? / heads.max(1)),
        int(emit.width(node.inputs[1])? / heads.max(1)),
    ];
    emit.push("concat", [n.div_ceil(threads as usize), 1, 1], threads, 0, params);
    Ok(())
}
