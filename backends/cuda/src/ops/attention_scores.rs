//! kernels/attention_scores.cu.

use super::attention::{soft_cap, visible};
use super::{Emit, int};
use crate::driver::Param;
use moe_run_graph::ir::{AttentionAttrs, Node};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, attrs: &AttentionAttrs) -> Result<(), BackendError> {
    let cached = emit.sizes.cached;
    let [window, chunk] = visible(attrs);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[2])?,
        emit.cache(node.inputs[1])?,
        emit.value(node.outputs[0])?,
        emit.kv_code(),
        int(attrs.num_key_value_heads),
        int(attrs.head_dim),
        Param::F32(attrs.scale),
        window,
        chunk,
        soft_cap(attrs),
        int(cached),
        emit.cache_rows(node.inputs[1])?,
    ];
    let grid = [cached.div_ceil(64), emit.sizes.tokens, attrs.num_attention_heads];
    emit.push("attention_scores", grid, 64, 0, params);
    Ok(())
}
