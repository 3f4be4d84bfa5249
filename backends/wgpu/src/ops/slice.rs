//! Slice: some elements of each head.

use crate::emit::{Emitter, Grid, Rows};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

const LANES: u32 = 256;

pub(super) fn emit(
    e: &mut Emitter<'_>,
    node: &Node,
    heads: usize,
    start: usize,
    len: usize,
) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let rows = Rows::of(e.shape(value));
    let width = e.width(node, value)? * rows.each;
    let rows = Rows { each: 1, ..rows };
    let head_width = e.width(node, node.inputs[0])? / heads.max(1) as u32;
    let (x, y) = (e.at(node.inputs[0])?, e.output(value));
    let params = [
        ("x", x.into()),
        ("y", y.into()),
        ("width", width.into()),
        ("axis", rows.code().into()),
        ("head_width", head_width.into()),
        ("start", (start as u32).into()),
        ("len", (len as u32).into()),
    ];
    e.push(e.variant("slice", &[("LANES", LANES)]), Grid::elements(rows, width, LANES), &params);
    Ok(())
}
