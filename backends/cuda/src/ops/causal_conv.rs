//! kernels/causal_conv.cu.

use super::gated_act::activation_params;
use super::{Emit, int};
use moe_run_graph::ir::{CausalConvAttrs, Node};
use moe_run_runtime::error::BackendError;

/// Channels of a block: CONV_CHANNELS in the kernel.
const CHANNELS_PER_BLOCK: usize = 32;

/// The most tokens that a block's warps take at once.
const MAX_WARPS: usize = 8;

pub(super) fn emit(emit: &mut Emit<'_>, node: &Node, attrs: &CausalConvAttrs) -> Result<(), BackendError> {
    let tokens = emit.rows(node.inputs[0]);
    let channels = emit.width(node.inputs[0])?;
    let mut params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.weights.vector(attrs.weight),
        emit.weights.opt_vector(attrs.bias),
        emit.state.param(attrs.state),
        emit.value(node.outputs[0])?,
        int(tokens),
        int(channels),
        int(emit.graph.state(attrs.state).width + 1),
    ];
    params.extend(activation_params(attrs.activation));
    let threads = 32 * tokens.clamp(1, MAX_WARPS) as u32;
    // A step without tokens leaves the state as it is.
    let blocks = if tokens == 0 { 0 } else { channels.div_ceil(CHANNELS_PER_BLOCK) };
    emit.push("causal_conv", [blocks, 1, 1], threads, 0, params);
    Ok(())
}
