//! kernels/index_select.cu.

use super::{Emit, int};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

/// SELECT_THREADS in the kernel.
const THREADS: u32 = 256;

/// What a choice asks for that the kernel lacks.
pub(super) fn lacking(top_k: usize) -> Option<String> {
    i32::try_from(top_k).is_err().then(|| format!("{top_k} positions; wanted at most {}", i32::MAX))
}

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, top_k: usize) -> Result<(), BackendError> {
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.value(node.outputs[0])?,
        int(emit.sizes.cached),
        int(top_k),
    ];
    emit.push("index_select", [emit.sizes.tokens, 1, 1], THREADS, 0, params);
    Ok(())
}
