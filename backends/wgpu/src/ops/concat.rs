//! Concat: each head's elements of two values, side by side.

use crate::emit::{Emitter, Grid, Rows};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

const LANES: u32 = 256;

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, heads: usize) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let rows = Rows::of(e.shape(value));
    let width = e.width(node, value)? * rows.each;
    let rows = Rows { each: 1, ..rows };
    let [from_a, from_b] = [node.inputs[0], node.inputs[1]].map(|v| e.width(node, v));
    let (a, b, y) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?, e.output(value));
    let params = [
        ("a", a.into()),
        ("b", b.into()),
        ("y", y.into()),
        ("width", width.into()),
        ("axis", rows.code().into()),
        ("from_a", (from_a? / heads.max(1) as u32).into()),
        ("from_b", (from_b? / heads.max(1) as u32).into()),
    ];
    e.push(e.variant("concat", &[("LANES", LANES)]), Grid::elements(rows, width, LANES), &params);
    Ok(())
}
