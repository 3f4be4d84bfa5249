//! kernels/attention_softmax.cu.

use super::attention::{mask, visible};
use super::{Emit, int};
use moe_run_graph::ir::{AttentionAttrs, Node};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, attrs: &AttentionAttrs) -> Result<(), BackendError> {
    let [window, chunk] = visible(attrs);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.weights.opt_vector(attrs.sinks),
        mask(emit, node, attrs, 3)?,
        emit.value(node.outputs[0])?,
        int(emit.sizes.cached),
        window,
        chunk,
    ];
    emit.push("attention_softmax", [emit.sizes.tokens, attrs.num_attention_heads, 1], 32, 0, params);
    Ok(())
}
