//! kernels/delta_rule.cu.

use super::{Emit, int};
use crate::driver::Param;
use moe_run_graph::ir::{DeltaRuleAttrs, HeadMap, Node};
use moe_run_runtime::error::BackendError;

/// Columns of a block.
pub(crate) const COLUMNS: usize = 32;
/// Rows of a warp: DELTA_ROWS in the kernel.
const ROWS_PER_WARP: usize = 16;
/// The most warps: the kernel's launch bound.
const MAX_WARPS: usize = 16;
/// Tokens that a block prepares together.
const CHUNK: usize = 8;

/// What a rule asks for that the kernel lacks.
pub(crate) fn lacking(attrs: &DeltaRuleAttrs) -> Option<String> {
    let DeltaRuleAttrs {
        num_key_heads: _,
        num_value_heads: _,
        key_head_dim,
        value_head_dim: _,
        head_map: HeadMap::Tiled | HeadMap::Grouped,
        eps: _,
        scale: _,
        state: _,
    } = *attrs;
    let most = ROWS_PER_WARP * MAX_WARPS;
    (key_head_dim > most).then(|| format!("key heads of {key_head_dim}; wanted at most {most}"))
}

/// The warps of a block.
pub(crate) fn warps(attrs: &DeltaRuleAttrs) -> usize {
    attrs.key_head_dim.div_ceil(ROWS_PER_WARP)
}

/// Shared bytes of a block that prepares so many tokens together.
pub(crate) fn shared_bytes(chunk: usize, warps: usize) -> usize {
    4 * (chunk * (3 * ROWS_PER_WARP * warps + 4) + 4 * COLUMNS * warps)
}

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, attrs: &DeltaRuleAttrs) -> Result<(), BackendError> {
    let tokens = emit.rows(node.inputs[0]);
    let warps = warps(attrs);
    let chunk = CHUNK.min(tokens);
    let shared = shared_bytes(chunk, warps);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.value(node.inputs[2])?,
        emit.value(node.inputs[3])?,
        emit.state.param(attrs.state),
        emit.value(node.outputs[0])?,
        int(tokens),
        int(attrs.num_key_heads),
        int(attrs.key_head_dim),
        int(attrs.value_head_dim),
        int(usize::from(attrs.head_map == HeadMap::Tiled)),
        int(emit.width(node.inputs[2])? / attrs.num_value_heads),
        Param::F32(attrs.eps),
        Param::F32(attrs.scale),
        int(chunk),
    ];
    // A step without tokens leaves the state as it is.
    let heads = if tokens == 0 { 0 } else { attrs.num_value_heads };
    let grid = [attrs.value_head_dim.div_ceil(COLUMNS), heads, 1];
    emit.push("delta_rule", grid, 32 * warps as u32, shared, params);
    Ok(())
}
