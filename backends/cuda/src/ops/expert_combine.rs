//! kernels/expert_combine.cu.

use super::{Emit, int, threads_for};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node) -> Result<(), BackendError> {
    let n = emit.width(node.outputs[0])?;
    let per_tok = emit.width(node.inputs[1])?;
    let threads = threads_for(n);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.value(node.outputs[0])?,
        int(n),
        int(per_tok),
    ];
    let rows = emit.rows(node.outputs[0]);
    emit.push("expert_combine", [n.div_ceil(threads as usize), rows, 1], threads, 0, params);
    Ok(())
}
