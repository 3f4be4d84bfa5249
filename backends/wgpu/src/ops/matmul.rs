//! MatMul: a few rows one by one, many in tiles; a split tensor takes one dispatch a part.

use crate::emit::{Emitter, Extent, FEW_ROWS, Grid, NONE, Rows};
use moe_run_graph::ir::{Node, WeightId, WeightSlice};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;
const TILE_ROWS: u32 = 64;
const TILE_TOKENS: u32 = 64;

pub(super) fn emit(
    e: &mut Emitter<'_>,
    node: &Node,
    weight: &WeightSlice,
    bias: Option<WeightId>,
    scale: Option<f32>,
) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let rows = Rows::of(e.shape(value));
    let out = e.width(node, value)?;
    let tensor = e.matrix(node, weight)?;
    let format = tensor.layout.format();
    let input = e.input_kind(format);
    let x = e.activations(node.inputs[0], input)?;
    let y = e.output(value);
    let few = rows.count(e.plan.max_sizes) <= FEW_ROWS;
    for (i, part) in tensor.parts.iter().enumerate() {
        let begin = part.start.max(weight.rows.start);
        let end = part.end.min(weight.rows.end);
        if begin >= end {
            continue;
        }
        let count = (end - begin) as u32;
        let params = [
            ("x", x.into()),
            ("y", y.into()),
            ("cols", (tensor.layout.cols() as u32).into()),
            ("y_stride", out.into()),
            ("rows", count.into()),
            ("y_begin", ((begin - weight.rows.start) as u32).into()),
            ("row_words", (tensor.layout.row_words as u32).into()),
            ("weight_blocks", (tensor.layout.blocks as u32).into()),
            ("axis", rows.code().into()),
            ("rows_each", rows.each.into()),
            ("first_row", ((begin - part.start) as u32).into()),
            ("bias", e.small(bias)?.into()),
            ("scale", scale.unwrap_or(1.0).into()),
            ("residual", NONE.into()),
        ];
        if few {
            let variant = e.variant("matmul", &[("LANES", LANES)]).weight("weight", format).input(input);
            let tokens = Extent::Rows { rows, times: 1, over: 1 };
            let grid = Grid::new(Extent::Fixed(count.div_ceil(4)), tokens, Extent::Fixed(1)).spilling();
            e.push(variant, grid, &params);
        } else {
            let sizes = [
                ("TILE_ROWS", TILE_ROWS),
                ("TILE_TOKENS", TILE_TOKENS),
                ("LANE_ROWS", 4),
                ("LANE_TOKENS", 4),
            ];
            let variant = e.variant("matmul_tile", &sizes).weight("weight", format).input(input);
            let tiles = Extent::Rows { rows, times: 1, over: TILE_TOKENS };
            let grid = Grid::new(Extent::Fixed(count.div_ceil(TILE_ROWS)), tiles, Extent::Fixed(1));
            e.push(variant, grid, &params);
        }
        e.bind_part(weight, i);
    }
    Ok(())
}
