//! RmsNorm: one workgroup a row, or a head of one.

use crate::emit::{Emitter, Extent, Grid, NONE, Rows};
use moe_run_graph::groups::parts::Sum;
use moe_run_graph::ir::{Node, WeightId};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(
    e: &mut Emitter<'_>,
    node: &Node,
    weight: Option<WeightId>,
    eps: f32,
    heads: usize,
) -> Result<(), BackendError> {
    emit_with(e, node, RmsNorm { weight, eps, heads }, None)
}

/// The op's attributes.
pub(crate) struct RmsNorm {
    pub weight: Option<WeightId>,
    pub eps: f32,
    pub heads: usize,
}

/// From the weights of a head of `width` elements to the next one's: 0 where all share them.
pub(crate) fn weight_step(e: &Emitter<'_>, weight: Option<WeightId>, width: usize) -> u32 {
    let elems = weight.map_or(0, |weight| e.plan.graph.weight(weight).shape.iter().product::<usize>());
    if elems > width { width as u32 } else { 0 }
}

/// The norm, and the addition behind it where there is one.
pub(crate) fn emit_with(
    e: &mut Emitter<'_>,
    node: &Node,
    norm: RmsNorm,
    add: Option<&Sum>,
) -> Result<(), BackendError> {
    let RmsNorm { weight, eps, heads } = norm;
    let value = node.outputs[0];
    let rows = Rows::of(e.shape(value));
    let width = e.width(node, value)? / heads as u32;
    let x = e.at(node.inputs[0])?;
    let (y, residual, sum) = match add {
        Some(add) => (e.stored(value).unwrap_or(NONE), e.at(add.other)?, e.output(add.y)),
        None => (e.output(value), NONE, NONE),
    };
    let lanes = if width > 512 { 256 } else { 64 };
    let variant = e.variant("rms_norm", &[("LANES", lanes)]);
    let params = [
        ("x", x.into()),
        ("y", y.into()),
        ("residual", residual.into()),
        ("sum", sum.into()),
        ("weight", e.small(weight)?.into()),
        ("weight_step", weight_step(e, weight, width as usize).into()),
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
