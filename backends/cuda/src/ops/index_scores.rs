//! kernels/index_scores.cu.

use super::{Emit, int};
use moe_run_graph::ir::{IndexScoresAttrs, Node};
use moe_run_runtime::error::BackendError;

const THREADS: usize = 128;

/// What an indexer asks for that the kernel lacks.
pub(super) fn lacking(attrs: &IndexScoresAttrs) -> Option<String> {
    let IndexScoresAttrs { num_heads: _, head_dim } = *attrs;
    (head_dim % 4 != 0).then(|| format!("heads of {head_dim}; wanted a multiple of 4"))
}

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, attrs: &IndexScoresAttrs) -> Result<(), BackendError> {
    let cached = emit.sizes.cached;
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.value(node.inputs[3])?,
        emit.cache(node.inputs[2])?,
        emit.value(node.outputs[0])?,
        emit.kv_code(),
        int(attrs.num_heads),
        int(attrs.head_dim),
        int(cached),
    ];
    let grid = [cached.div_ceil(THREADS), emit.sizes.tokens, 1];
    emit.push("index_scores", grid, THREADS as u32, 0, params);
    Ok(())
}
