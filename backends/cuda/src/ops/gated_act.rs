//! kernels/gated_act.cu.

use super::{Emit, int, threads_for};
use crate::driver::Param;
use moe_run_graph::ir::{ActivationFn, Node};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, activation: ActivationFn) -> Result<(), BackendError> {
    let n = emit.elems(node.inputs[0]);
    let threads = threads_for(n);
    let mut params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.opt_value(node.outputs[0]),
        emit.opt_value(node.outputs[1]),
        int(n),
    ];
    let kernel = match activation {
        ActivationFn::Silu => "gated_act",
        // Refused before: `supports`.
        ActivationFn::GeluTanh => return Err(BackendError::mismatch(node.op.stem())),
        ActivationFn::ClampedSwiglu { alpha, limit } => {
            params.extend([Param::F32(alpha), Param::F32(limit)]);
            "gated_act_clamped"
        }
        // Refused before: `supports`.
        ActivationFn::Sigmoid => return Err(BackendError::mismatch(node.op.stem())),
    };
    emit.push(kernel, [n.div_ceil(threads as usize), 1, 1], threads, 0, params);
    Ok(())
}
