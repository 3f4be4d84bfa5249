//! Pointwise: a function of each element.

use crate::emit::{Emitter, Grid, Rows};
use moe_run_graph::ir::{Node, PointwiseFn};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 256;

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, function: PointwiseFn) -> Result<(), BackendError> {
    let (code, factor) = match function {
        PointwiseFn::Scale(factor) => (0u32, factor),
        PointwiseFn::SoftCap(cap) => (1, cap),
        PointwiseFn::Clamp(limit) => (2, limit),
        PointwiseFn::ReluSquared => (3, 1.0),
    };
    let value = node.outputs[0];
    let rows = Rows::of(e.shape(value));
    let width = e.width(node, value)? * rows.each;
    let rows = Rows { each: 1, ..rows };
    let (x, y) = (e.at(node.inputs[0])?, e.output(value));
    let params = [
        ("x", x.into()),
        ("y", y.into()),
        ("width", width.into()),
        ("axis", rows.code().into()),
        ("function", code.into()),
        ("factor", factor.into()),
    ];
    e.push(e.variant("pointwise", &[("LANES", LANES)]), Grid::elements(rows, width, LANES), &params);
    Ok(())
}
