//! kernels/hyper_gates.cu.

use super::{Emit, int, threads_for};
use crate::driver::Param;
use moe_run_graph::ir::{HyperGatesAttrs, Node};
use moe_run_runtime::error::BackendError;

/// MAX_STREAMS in the kernel.
const MAX_STREAMS: usize = 8;

/// What gates ask for that the kernel lacks.
pub(super) fn lacking(attrs: &HyperGatesAttrs) -> Option<String> {
    let HyperGatesAttrs { streams, iterations: _, eps: _, scale: _, base: _ } = *attrs;
    (streams > MAX_STREAMS).then(|| format!("{streams} streams; wanted at most {MAX_STREAMS}"))
}

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, attrs: &HyperGatesAttrs) -> Result<(), BackendError> {
    let rows = emit.rows(node.inputs[0]);
    let out = |i: usize| node.outputs.get(i).map_or(Param::NULL, |value| emit.opt_value(*value));
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.weights.vector(attrs.scale),
        emit.weights.vector(attrs.base),
        out(0),
        out(1),
        out(2),
        int(rows),
        int(attrs.streams),
        int(attrs.iterations.unwrap_or(0)),
        Param::F32(attrs.eps),
    ];
    let threads = threads_for(rows);
    emit.push("hyper_gates", [rows.div_ceil(threads as usize), 1, 1], threads, 0, params);
    Ok(())
}
