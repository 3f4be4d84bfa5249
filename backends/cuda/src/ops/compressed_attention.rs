//! kernels/compressed_attention.cu.

use super::{Emit, int};
use crate::driver::Param;
use moe_run_graph::ir::{CompressedAttentionAttrs, Node};
use moe_run_runtime::error::BackendError;

/// COMPRESSED_THREADS in the kernel.
const THREADS: u32 = 128;

/// The largest head: a query and its result stand in shared memory.
const MAX_HEAD_DIM: usize = 4096;

/// What attention asks for that the kernel lacks.
pub(super) fn lacking(attrs: &CompressedAttentionAttrs) -> Option<String> {
    let CompressedAttentionAttrs {
        num_attention_heads: _,
        head_dim,
        scale: _,
        window,
        ratio,
        sinks: _,
        masked: _,
    } = *attrs;
    if i32::try_from(window.max(ratio)).is_err() {
        return Some(format!("a window of {window} and a ratio of {ratio}; wanted at most {}", i32::MAX));
    }
    (head_dim % 4 != 0 || head_dim > MAX_HEAD_DIM)
        .then(|| format!("heads of {head_dim}; wanted a multiple of 4, at most {MAX_HEAD_DIM}"))
}

pub(super) fn emit(
    emit: &mut Emit<'_>,
    node: &Node,
    attrs: &CompressedAttentionAttrs,
) -> Result<(), BackendError> {
    let mask = match node.inputs.get(5) {
        Some(mask) if attrs.masked => emit.value(*mask)?,
        _ => Param::NULL,
    };
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[3])?,
        emit.cache(node.inputs[1])?,
        emit.cache(node.inputs[2])?,
        emit.weights.opt_vector(attrs.sinks),
        mask,
        emit.value(node.outputs[0])?,
        emit.kv_code(),
        int(attrs.head_dim),
        Param::F32(attrs.scale),
        int(attrs.window),
        int(attrs.ratio),
        int(emit.sizes.cached),
    ];
    let grid = [emit.sizes.tokens, attrs.num_attention_heads, 1];
    emit.push("compressed_attention", grid, THREADS, 2 * attrs.head_dim * size_of::<f32>(), params);
    Ok(())
}
