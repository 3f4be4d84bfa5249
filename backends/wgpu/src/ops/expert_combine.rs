//! ExpertCombine: the chosen experts' outputs by their weights.

use crate::emit::{Emitter, Extent, Grid, Rows};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let width = e.width(node, value)?;
    let experts_per_token = e.width(node, node.inputs[1])?;
    let (x, weights, y) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?, e.output(value));
    let variant = e.variant("expert_combine", &[("LANES", LANES)]);
    let tokens = Extent::Rows { rows: Rows::of(e.shape(value)), times: 1, over: 1 };
    let params = [
        ("x", x.into()),
        ("weights", weights.into()),
        ("y", y.into()),
        ("width", width.into()),
        ("experts_per_token", experts_per_token.into()),
    ];
    e.push(variant, Grid::new(Extent::Fixed(width.div_ceil(LANES)), tokens, Extent::Fixed(1)), &params);
    Ok(())
}
