//! MulHeads: each head times its factor.

use crate::emit::{Emitter, Grid, Rows};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

const LANES: u32 = 256;

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let rows = Rows::of(e.shape(value));
    let head_width = e.width(node, value)? / e.width(node, node.inputs[1])?.max(1);
    let width = e.width(node, value)? * rows.each;
    let rows = Rows { each: 1, ..rows };
    let (x, factors, y) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?, e.output(value));
    let params = [
        ("x", x.into()),
        ("factors", factors.into()),
        ("y", y.into()),
        ("width", width.into()),
        ("axis", rows.code().into()),
        ("head_width", head_width.into()),
    ];
    e.push(e.variant("mul_heads", &[("LANES", LANES)]), Grid::elements(rows, width, LANES), &params);
    Ok(())
}
