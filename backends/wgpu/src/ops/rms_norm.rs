//! RmsNorm: one workgroup a row, or a head of one.

use crate::emit::{Emitter, Extent, Grid, Rows};
use moe_run_graph::ir::{Node, WeightId};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(
    e: &mut Emitter<'_>,
    node: &Node,
    weight: Option<WeightId>,
    eps: f32,
    heads: usize,
) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let rows = Rows::of(e.shape(value));
    let width = e.width(node, value)? / heads as u32;
    let (x, y) = (e.at(node.inputs[0])?, e.output(value));
    // One weight for all heads, or a part of it for each.
    let elems = weight.map_or(0, |weight| e.plan.graph.weight(weight).shape.iter().product::<usize>());
    let weight_step = if elems > width as usize { width } else { 0 };
    let lanes = if width > 512 { 256 } else { 64 };
    let variant = e.variant("rms_norm", &[("LANES", lanes)]);
    let params = [
        ("x", x.into()),
        ("y", y.into()),
        ("weight", e.small(weight)?.into()),
        ("weight_step", weight_step.into()),
        ("width", width.into()),
        ("axis", rows.code().into()),
        ("rows_each", rows.each.into()),
        ("eps", eps.into()),
    ];
    let grid =
        Grid::new(Extent::Fixed(heads as u32), Extent::Rows { rows, times: 1, over: 1 }, Extent::Fixed(1));
    e.push(variant, grid, &params);
    Ok(())
}
