//! kernels/hyper_connect.cu.

use super::{Emit, int, threads_for};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, streams: usize) -> Result<(), BackendError> {
    let (tokens, width) = (emit.rows(node.inputs[1]), emit.width(node.inputs[1])?);
    let mut params = Vec::new();
    for value in node.inputs.iter().chain(&node.outputs) {
        params.push(emit.value(*value)?);
    }
    params.push(int(width));
    let threads = threads_for(width);
    emit.push("hyper_connect", [width.div_ceil(threads as usize), tokens, streams], threads, 0, params);
    Ok(())
}
