//! AttentionSoftmax, recomputed for looking at.

use super::attention::mask;
use crate::emit::{Axis, Emitter, Extent, Grid, Rows};
use moe_run_graph::ir::{AttentionAttrs, Node};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, attrs: &AttentionAttrs) -> Result<(), BackendError> {
    let (x, positions) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?);
    let y = e.output(node.outputs[0]);
    let variant = e.variant("attention_softmax", &[("LANES", LANES)]);
    let params = [
        ("x", x.into()),
        ("positions", positions.into()),
        ("y", y.into()),
        ("window", (attrs.window.unwrap_or(0) as u32).into()),
        ("chunk", (attrs.chunk.unwrap_or(0) as u32).into()),
        ("sinks", e.small(attrs.sinks)?.into()),
        ("mask", mask(e, node, attrs, 3)?.into()),
    ];
    let tokens = Extent::Rows { rows: Rows { axis: Axis::Tokens, each: 1 }, times: 1, over: 1 };
    let grid = Grid::new(tokens, Extent::Fixed(attrs.num_attention_heads as u32), Extent::Fixed(1));
    e.push(variant, grid, &params);
    Ok(())
}
