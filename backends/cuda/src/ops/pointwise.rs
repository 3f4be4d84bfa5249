//! kernels/pointwise.cu.

use super::{Emit, int, threads_for};
use crate::driver::Param;
use moe_run_graph::ir::{Node, PointwiseFn};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, function: PointwiseFn) -> Result<(), BackendError> {
    let (code, factor) = match function {
        PointwiseFn::Scale(factor) => (0, factor),
        PointwiseFn::SoftCap(cap) => (1, cap),
        PointwiseFn::Clamp(limit) => (2, limit),
        // Refused before: `supports`.
        PointwiseFn::ReluSquared => return Err(BackendError::mismatch(node.op.stem())),
    };
    let n = emit.elems(node.outputs[0]);
    let threads = threads_for(n);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.outputs[0])?,
        int(n),
        Param::I32(code),
        Param::F32(factor),
    ];
    emit.push("pointwise", [n.div_ceil(threads as usize), 1, 1], threads, 0, params);
    Ok(())
}
