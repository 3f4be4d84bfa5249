//! kernels/kv_write.cu.

use super::{Emit, int};
use crate::driver::Param;
use moe_run_graph::ir::{Node, StateId};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(
    emit: &mut Emit<'_>,
    node: &Node,
    key: StateId,
    value: Option<StateId>,
) -> Result<(), BackendError> {
    let slots = *node.inputs.last().ok_or_else(|| BackendError::mismatch(node.op.stem()))?;
    let tokens = emit.elems(slots);
    let (v, values, width) = match value {
        Some(state) => {
            (emit.value(node.inputs[1])?, emit.state.param(state), emit.graph.state(state).row_elems())
        }
        None => (Param::NULL, Param::NULL, 0),
    };
    let params = vec![
        emit.value(node.inputs[0])?,
        v,
        emit.value(slots)?,
        emit.state.param(key),
        values,
        emit.kv_code(),
        int(emit.graph.state(key).row_elems()),
        int(width),
        int(emit.positions_capacity),
        int(emit.state.rows(key)),
    ];
    emit.push("kv_write", [tokens, 1, 1], 128, 0, params);
    Ok(())
}
