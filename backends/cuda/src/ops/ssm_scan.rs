//! kernels/ssm_scan.cu.

use super::{Emit, int};
use moe_run_graph::ir::{Node, SsmScanAttrs};
use moe_run_runtime::error::BackendError;

/// Warps of a block.
const WARPS: usize = 4;
/// The kernels: rows of a warp, and the largest state of a row.
const KERNELS: [(&str, usize, usize); 2] = [("ssm_scan_n128", 8, 128), ("ssm_scan_n256", 4, 256)];

/// What a scan asks for that the kernels lack.
pub(super) fn lacking(attrs: &SsmScanAttrs) -> Option<String> {
    let SsmScanAttrs { num_heads: _, head_dim: _, state_size, n_groups: _, a: _, d: _, dt_bias: _, state: _ } =
        *attrs;
    let [.., (_, _, most)] = KERNELS;
    (state_size > most).then(|| format!("a state of {state_size} a row; wanted at most {most}"))
}

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, attrs: &SsmScanAttrs) -> Result<(), BackendError> {
    let fitting = KERNELS.iter().find(|(_, _, most)| attrs.state_size <= *most);
    let (kernel, rows, _) = fitting.ok_or_else(|| BackendError::mismatch(node.op.stem()))?;
    let tokens = emit.rows(node.inputs[0]);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.value(node.inputs[2])?,
        emit.weights.vector(attrs.a),
        emit.weights.vector(attrs.d),
        emit.weights.vector(attrs.dt_bias),
        emit.state.param(attrs.state),
        emit.value(node.outputs[0])?,
        int(tokens),
        int(attrs.head_dim),
        int(attrs.state_size),
        int(attrs.n_groups),
    ];
    let grid = [attrs.head_dim.div_ceil(WARPS * rows), attrs.num_heads, 1];
    emit.push(kernel, grid, 32 * WARPS as u32, 0, params);
    Ok(())
}
