//! kernels/kv_write.cu.

use super::{Emit, int};
use moe_run_graph::ir::{Node, StateId};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(
    emit: &mut Emit<'_>,
    node: &Node,
    key: StateId,
    value: StateId,
) -> Result<(), BackendError> {
    let tokens = emit.elems(node.inputs[2]);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.value(node.inputs[2])?,
        emit.state.param(key),
        emit.state.param(value),
        emit.kv_code(),
        int(emit.graph.state(key).row_elems()),
        int(emit.graph.state(value).row_elems()),
        int(emit.positions_capacity),
    ];
    emit.push("kv_write", [tokens, 1, 1], 128, 0, params);
    Ok(())
}
