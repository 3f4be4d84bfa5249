//! Embed: rows of the table, decoded; a split table takes one dispatch a part.

use crate::emit::{Emitter, Extent, Grid, Rows};
use moe_run_graph::ir::{Node, WeightSlice};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;

pub(super) fn emit(
    e: &mut Emitter<'_>,
    node: &Node,
    table: &WeightSlice,
    scale: Option<f32>,
) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let rows = Rows::of(e.shape(value));
    let width = e.width(node, value)?;
    let (ids, y) = (e.at(node.inputs[0])?, e.output(value));
    let tensor = e.matrix(node, table)?;
    for (i, part) in tensor.parts.iter().enumerate() {
        let variant = e.variant("embed", &[("LANES", LANES)]).weight("weight", tensor.layout.format());
        let params = [
            ("ids", ids.into()),
            ("y", y.into()),
            ("width", width.into()),
            ("axis", rows.code().into()),
            ("row_begin", (part.start as u32).into()),
            ("row_end", (part.end as u32).into()),
            ("row_words", (tensor.layout.row_words as u32).into()),
            ("weight_blocks", (tensor.layout.blocks as u32).into()),
            ("first_row", (table.rows.start as u32).into()),
            ("vocabulary", (table.rows.len() as u32).into()),
            ("scale", scale.unwrap_or(1.0).into()),
        ];
        let groups = width.div_ceil(16).div_ceil(LANES);
        let tokens = Extent::Rows { rows, times: 1, over: 1 };
        e.push(variant, Grid::new(Extent::Fixed(groups), tokens, Extent::Fixed(1)), &params);
        e.bind_part(table, i);
    }
    Ok(())
}
