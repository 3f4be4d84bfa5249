//! kernels/layer_norm.cu.

use super::{Emit, int, threads_for};
use crate::driver::Param;
use moe_run_graph::ir::{Node, WeightId};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(
    emit: &mut Emit<'_>,
    node: &Node,
    weight: WeightId,
    bias: Option<WeightId>,
    eps: f32,
) -> Result<(), BackendError> {
    let n = emit.width(node.inputs[0])?;
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.weights.vector(weight),
        emit.weights.opt_vector(bias),
        emit.value(node.outputs[0])?,
        Param::F32(eps),
        int(n),
    ];
    emit.push("layer_norm", [emit.rows(node.inputs[0]), 1, 1], threads_for(n), 0, params);
    Ok(())
}
