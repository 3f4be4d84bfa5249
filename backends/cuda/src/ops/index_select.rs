//! kernels/index_select.cu.

use super::{Emit, int};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

/// SELECT_THREADS in the kernel.
const THREADS: u32 = 256;

/// What a choice asks for that the kernel lacks.
pub(super) fn lacking(top_k: usize, every: usize) -> Option<String> {
    let large = i32::try_from(top_k.max(every)).is_err();
    large.then(|| format!("{top_k} positions, of every {every}; wanted at most {}", i32::MAX))
}

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, top_k: usize, every: usize) -> Result<(), BackendError> {
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.value(node.outputs[0])?,
        int(emit.sizes.cached),
        int(top_k),
        int(every),
    ];
    emit.push("index_select", [emit.sizes.tokens, 1, 1], THREADS, 0, params);
    Ok(())
}
