//! kernels/gated_act.cu.

use super::{Emit, int, threads_for};
use moe_run_graph::ir::{ActivationFn, Node};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, activation: ActivationFn) -> Result<(), BackendError> {
    // The kernel is SiLU's; another activation would be another kernel.
    let ActivationFn::Silu = activation;
    let n = emit.elems(node.inputs[0]);
    let threads = threads_for(n);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.opt_value(node.outputs[0]),
        emit.opt_value(node.outputs[1]),
        int(n),
    ];
    emit.push("gated_act", [n.div_ceil(threads as usize), 1, 1], threads, 0, params);
    Ok(())
}
