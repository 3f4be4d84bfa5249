//! Add: a + b, element by element.

use crate::emit::{Emitter, Grid, Rows};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

const LANES: u32 = 256;

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node) -> Result<(), BackendError> {
    elementwise(e, node, "add")
}

/// Add and Mul differ in their shader alone.
pub(super) fn elementwise(e: &mut Emitter<'_>, node: &Node, op: &'static str) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let rows = Rows::of(e.shape(value));
    let width = e.width(node, value)? * rows.each;
    let rows = Rows { each: 1, ..rows };
    let (a, b, y) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?, e.output(value));
    let variant = e.variant(op, &[("LANES", LANES)]);
    let params = [
        ("a", a.into()),
        ("b", b.into()),
        ("y", y.into()),
        ("width", width.into()),
        ("axis", rows.code().into()),
    ];
    e.push(variant, Grid::elements(rows, width, LANES), &params);
    Ok(())
}
