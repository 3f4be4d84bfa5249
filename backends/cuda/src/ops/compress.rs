//! kernels/compress.cu.

use super::{Emit, int};
use moe_run_graph::ir::{CompressAttrs, Node};
use moe_run_runtime::error::BackendError;

/// Channels of a block.
const CHANNELS_PER_BLOCK: usize = 32;

/// What a compression asks for that the kernel lacks.
pub(super) fn lacking(attrs: &CompressAttrs) -> Option<String> {
    let CompressAttrs { ratio, overlap: _, bias: _, state: _ } = *attrs;
    i32::try_from(6 * ratio).is_err().then(|| format!("windows of {ratio} positions; wanted fewer"))
}

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, attrs: &CompressAttrs) -> Result<(), BackendError> {
    let (tokens, width) = (emit.rows(node.inputs[0]), emit.width(node.outputs[0])?);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.value(node.inputs[2])?,
        emit.weights.vector(attrs.bias),
        emit.state.param(attrs.state),
        emit.value(node.outputs[0])?,
        int(tokens),
        int(width),
        int(attrs.ratio),
        int(usize::from(attrs.overlap)),
    ];
    // A step without tokens leaves the state as it is.
    let blocks = if tokens == 0 { 0 } else { width.div_ceil(CHANNELS_PER_BLOCK) };
    emit.push("compress", [blocks, 1, 1], CHANNELS_PER_BLOCK as u32, 0, params);
    Ok(())
}
