//! kernels/attention.cu, and kernels/attention_tiles.cu for many tokens on matrix units.

use super::{Emit, int};
use crate::driver::Param;
use moe_run_graph::ir::{AttentionAttrs, Node};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

/// Query heads of one KV head that a block takes: ATTEND_HEADS in kernels/common/attend.cuh.
pub(crate) const HEADS_PER_BLOCK: usize = 8;
/// Threads, and positions of a tile: ATTEND_TILE there.
pub(crate) const TILE: usize = 128;
/// The widest value head: kernels/common/attend.cuh.
const MAX_VALUE_HEAD_DIM: usize = 512;
/// The widest key head: 8 queries of it and the scores fit in 48 KiB of shared memory.
const MAX_HEAD_DIM: usize = 1024;
/// The most splits of a query's cached positions.
pub(crate) const MAX_SPLITS: usize = 64;

/// Blocks for one token and split, and the most splits: enough to keep the device busy with one token, one in prefill.
pub(crate) fn split_geometry(attrs: &AttentionAttrs, tokens: usize, multiprocessors: u32) -> (usize, usize) {
    let blocks = attrs.num_key_value_heads * attrs.group_size().div_ceil(HEADS_PER_BLOCK);
    let splits = if tokens == 1 { (multiprocessors as usize).div_ceil(blocks) } else { 1 };
    (blocks, splits.clamp(1, MAX_SPLITS))
}

/// Dynamic shared memory of the attention kernels: queries, scores and three numbers a head.
pub(crate) fn shared_bytes(attrs: &AttentionAttrs) -> usize {
    4 * HEADS_PER_BLOCK * (attrs.head_dim + TILE + 3)
}

/// Tokens of a block: TOKENS_PER_BLOCK in kernels/attention_tiles.cu.
const TILE_TOKENS: usize = 4;

/// Whether the kernels of the matrix units take these heads and this cache.
pub(crate) fn fits_tiles(emit: &Emit<'_>, attrs: &AttentionAttrs) -> bool {
    emit.matrix_units
        && emit.kv_type == KvType::F16
        && attrs.head_dim == attrs.value_head_dim
        && !attrs.value_in_key
        && !attrs.masked
        && matches!(attrs.head_dim, 64 | 128)
}

/// Window and chunk, each of which may be absent, as kernels take them: kernels/common/visible.cuh.
pub(crate) fn visible(attrs: &AttentionAttrs) -> [Param; 2] {
    [attrs.window, attrs.chunk].map(|n| int(n.unwrap_or(0)))
}

/// A cap that may be absent, as kernels take it.
pub(crate) fn soft_cap(attrs: &AttentionAttrs) -> Param {
    Param::F32(attrs.soft_cap.unwrap_or(0.0))
}

/// The operand that says which positions are seen, null without one.
pub(super) fn mask(
    emit: &Emit<'_>,
    node: &Node,
    attrs: &AttentionAttrs,
    at: usize,
) -> Result<Param, BackendError> {
    match node.inputs.get(at) {
        Some(mask) if attrs.masked => emit.value(*mask),
        _ => Ok(Param::NULL),
    }
}

/// What heads ask for that the kernels lack.
pub(super) fn lacking(attrs: &AttentionAttrs) -> Option<String> {
    let AttentionAttrs {
        num_attention_heads: _,
        num_key_value_heads: _,
        head_dim: d,
        value_head_dim: dv,
        scale: _,
        window,
        chunk,
        soft_cap: _,
        sinks: _,
        value_in_key: _,
        masked: _,
    } = *attrs;
    if d % 4 != 0 || dv % 4 != 0 || d > MAX_HEAD_DIM || dv > MAX_VALUE_HEAD_DIM {
        return Some(format!(
            "key heads of {d} and value heads of {dv}; wanted multiples of 4, up to {MAX_HEAD_DIM} and up to \
             {MAX_VALUE_HEAD_DIM}"
        ));
    }
    let many = window.into_iter().chain(chunk).find(|n| i32::try_from(*n).is_err());
    many.map(|n| format!("a window or chunk of {n}; wanted at most {}", i32::MAX))
}

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, attrs: &AttentionAttrs) -> Result<(), BackendError> {
    let tokens = emit.sizes.tokens;
    if tokens > 1 && fits_tiles(emit, attrs) {
        let (blocks, _) = split_geometry(attrs, tokens, emit.scratch.multiprocessors);
        let [window, chunk] = visible(attrs);
        let params = vec![
            emit.value(node.inputs[0])?,
            emit.value(node.inputs[3])?,
            emit.cache(node.inputs[1])?,
            emit.cache(node.inputs[2])?,
            emit.weights.opt_vector(attrs.sinks),
            emit.value(node.outputs[0])?,
            int(attrs.num_attention_heads),
            int(attrs.num_key_value_heads),
            int(attrs.head_dim),
            Param::F32(attrs.scale),
            window,
            chunk,
            soft_cap(attrs),
            emit.cache_rows(node.inputs[1])?,
            int(tokens),
        ];
        emit.push("attention_tiles", [blocks, tokens.div_ceil(TILE_TOKENS), 1], TILE as u32, 0, params);
        return Ok(());
    }
    let (blocks, splits) = split_geometry(attrs, tokens, emit.scratch.multiprocessors);
    let [window, chunk] = visible(attrs);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[3])?,
        emit.cache(node.inputs[1])?,
        emit.cache(node.inputs[2])?,
        emit.weights.opt_vector(attrs.sinks),
        emit.scratch.partial.param(),
        emit.scratch.partial_state.param(),
        emit.scratch.arrived.param(),
        emit.value(node.outputs[0])?,
        emit.kv_code(),
        int(attrs.num_attention_heads),
        int(attrs.num_key_value_heads),
        int(attrs.head_dim),
        int(attrs.value_head_dim),
        Param::F32(attrs.scale),
        window,
        chunk,
        soft_cap(attrs),
        int(usize::from(attrs.value_in_key)),
        mask(emit, node, attrs, 5)?,
        int(emit.sizes.cached),
        emit.cache_rows(node.inputs[1])?,
        int(splits),
    ];
    emit.push("attention", [blocks, splits, tokens], TILE as u32, shared_bytes(attrs), params);
    Ok(())
}
