//! GetRows: the rows of x that the step asks for.

use crate::emit::{Emitter, Extent, Grid, Rows};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let width = e.width(node, value)?;
    let (x, rows, y) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?, e.output(value));
    let variant = e.variant("get_rows", &[("LANES", LANES)]);
    let count = Extent::Rows { rows: Rows::of(e.shape(value)), times: 1, over: 1 };
    let grid = Grid::new(Extent::Fixed(width.div_ceil(LANES)), count, Extent::Fixed(1));
    e.push(
        variant,
        grid,
        &[("x", x.into()), ("rows", rows.into()), ("y", y.into()), ("width", width.into())],
    );
    Ok(())
}
