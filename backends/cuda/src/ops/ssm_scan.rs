//! kernels/ssm_scan.cu.

use super::{Emit, int};
use moe_run_graph::ir::{DecayOf, Node, SsmScanAttrs};
use moe_run_runtime::error::BackendError;

/// Warps of a block.
const WARPS: usize = 4;
/// The kernels: rows of a warp, and the largest state of a row.
const KERNELS: [(&str, usize, usize); 2] = [("ssm_scan_n128", 8, 128), ("ssm_scan_n256", 4, 256)];
/// Those of channels, each 16 lanes: the largest state.
const CHANNEL_KERNELS: [(&str, usize); 2] = [("ssm_scan_channels_n16", 16), ("ssm_scan_channels_n256", 256)];

/// What a scan asks for that the kernels lack.
pub(super) fn lacking(attrs: &SsmScanAttrs) -> Option<String> {
    let SsmScanAttrs {
        num_heads: _,
        head_dim: _,
        state_size,
        n_groups: _,
        decay_of: DecayOf::Head | DecayOf::Element,
        a: _,
        d: _,
        dt_bias: _,
        state: _,
    } = *attrs;
    let [.., (_, _, most)] = KERNELS;
    (state_size > most).then(|| format!("a state of {state_size} a row; wanted at most {most}"))
}

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, attrs: &SsmScanAttrs) -> Result<(), BackendError> {
    let tokens = emit.rows(node.inputs[0]);
    let mut params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.value(node.inputs[2])?,
        emit.weights.vector(attrs.a),
        emit.weights.vector(attrs.d),
        emit.weights.vector(attrs.dt_bias),
        emit.state.param(attrs.state),
        emit.value(node.outputs[0])?,
        int(tokens),
    ];
    let mismatch = || BackendError::mismatch(node.op.stem());
    let (kernel, grid) = match attrs.decay_of {
        DecayOf::Head => {
            let fitting = KERNELS.iter().find(|(_, _, most)| attrs.state_size <= *most);
            let (kernel, rows, _) = fitting.ok_or_else(mismatch)?;
            params.extend([int(attrs.head_dim), int(attrs.state_size), int(attrs.n_groups)]);
            (kernel, [attrs.head_dim.div_ceil(WARPS * rows), attrs.num_heads, 1])
        }
        DecayOf::Element => {
            let fitting = CHANNEL_KERNELS.iter().find(|(_, most)| attrs.state_size <= *most);
            let (kernel, _) = fitting.ok_or_else(mismatch)?;
            params.extend([int(attrs.num_heads), int(attrs.state_size)]);
            (kernel, [attrs.num_heads.div_ceil(2 * WARPS), 1, 1])
        }
    };
    emit.push(kernel, grid, 32 * WARPS as u32, 0, params);
    Ok(())
}
