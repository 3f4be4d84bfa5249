//! CausalConv: a workgroup for some channels of all tokens, whose past it reads and then changes.

use super::gated_act::activation_params;
use crate::emit::{Emitter, Extent, Grid, StateBinding};
use moe_run_graph::ir::{CausalConvAttrs, Node};
use moe_run_runtime::error::BackendError;

/// Channels of a workgroup.
const CHANNELS: u32 = 32;

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, attrs: &CausalConvAttrs) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let channels = e.width(node, value)?;
    let (x, positions, y) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?, e.output(value));
    let lanes = CHANNELS * e.plan.max_sizes.tokens.clamp(1, 8) as u32;
    let variant = e.variant("causal_conv", &[("LANES", lanes), ("CHANNELS", CHANNELS)]);
    let mut params = vec![
        ("x", x.into()),
        ("positions", positions.into()),
        ("y", y.into()),
        ("channels", channels.into()),
        ("weight", e.small(Some(attrs.weight))?.into()),
        ("bias", e.small(attrs.bias)?.into()),
        ("kept", (e.plan.graph.state(attrs.state).width as u32).into()),
    ];
    params.extend(activation_params(attrs.activation));
    let one = Extent::Fixed(1);
    e.push(variant, Grid::new(Extent::Fixed(channels.div_ceil(CHANNELS)), one, one), &params);
    if let Some(dispatch) = e.last() {
        dispatch.state = StateBinding::Update(vec![attrs.state]);
    }
    Ok(())
}
