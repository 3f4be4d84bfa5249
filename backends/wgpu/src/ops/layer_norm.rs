//! LayerNorm: one workgroup a row.

use crate::emit::{Emitter, Extent, Grid, Rows};
use moe_run_graph::ir::{Node, WeightId};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(
    e: &mut Emitter<'_>,
    node: &Node,
    weight: WeightId,
    bias: Option<WeightId>,
    eps: f32,
) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let rows = Rows::of(e.shape(value));
    let width = e.width(node, value)?;
    let (x, y) = (e.at(node.inputs[0])?, e.output(value));
    let lanes = if width > 512 { 256 } else { 64 };
    let variant = e.variant("layer_norm", &[("LANES", lanes)]);
    let params = [
        ("x", x.into()),
        ("y", y.into()),
        ("weight", e.small(Some(weight))?.into()),
        ("bias", e.small(bias)?.into()),
        ("width", width.into()),
        ("axis", rows.code().into()),
        ("rows_each", rows.each.into()),
        ("eps", eps.into()),
    ];
    let grid = Grid::new(Extent::Fixed(1), Extent::Rows { rows, times: 1, over: 1 }, Extent::Fixed(1));
    e.push(variant, grid, &params);
    Ok(())
}
