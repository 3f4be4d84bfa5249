//! kernels/gated_act.cu.

use super::{Emit, int, threads_for};
use crate::driver::Param;
use moe_run_graph::ir::{ActivationFn, Node};
use moe_run_runtime::error::BackendError;

/// The function's number in kernels/common/gate.cuh, 0 for none, and its alpha and limit.
pub(crate) fn activation_params(activation: Option<ActivationFn>) -> [Param; 3] {
    let (code, alpha, limit) = match activation {
        None => (0, 0.0, 0.0),
        Some(ActivationFn::Silu) => (1, 0.0, 0.0),
        Some(ActivationFn::ClampedSwiglu { alpha, limit }) => (2, alpha, limit),
        Some(ActivationFn::Sigmoid) => (3, 0.0, 0.0),
        Some(ActivationFn::GeluTanh) => (4, 0.0, 0.0),
        Some(ActivationFn::Relu) => (5, 0.0, 0.0),
        Some(ActivationFn::Softplus) => (6, 0.0, 0.0),
        Some(ActivationFn::LimitedSwiglu { limit }) => (7, 0.0, limit),
        Some(ActivationFn::BoundedSwiglu { limit }) => (8, 1.0, limit),
    };
    [Param::I32(code), Param::F32(alpha), Param::F32(limit)]
}

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
    params.extend(activation_params(Some(activation)));
    emit.push("gated_act", [n.div_ceil(threads as usize), 1, 1], threads, 0, params);
    Ok(())
}
