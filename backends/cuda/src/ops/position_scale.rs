//! kernels/position_scale.cu.

use super::{Emit, int, threads_for};
use crate::driver::Param;
use moe_run_graph::ir::{Node, PositionScaleAttrs};
use moe_run_runtime::error::BackendError;

/// Positions, and what is added to them, stay below half of this.
const MOST: usize = i32::MAX as usize / 2;

/// What the kernel cannot count.
pub(super) fn lacking(attrs: &PositionScaleAttrs) -> Option<String> {
    let PositionScaleAttrs { scale: _, length, offset } = *attrs;
    (length > MOST || offset > MOST)
        .then(|| format!("positions in steps of {length} from {offset} on; wanted at most {MOST}"))
}

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, attrs: &PositionScaleAttrs) -> Result<(), BackendError> {
    let n = emit.elems(node.outputs[0]);
    let threads = threads_for(n);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.value(node.outputs[0])?,
        int(n),
        int(emit.width(node.inputs[0])?),
        Param::F32(attrs.scale),
        int(attrs.length),
        int(attrs.offset),
    ];
    emit.push("position_scale", [n.div_ceil(threads as usize), 1, 1], threads, 0, params);
    Ok(())
}
