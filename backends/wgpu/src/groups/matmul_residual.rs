//! A matmul and the addition to the residual stream; norm_matmul.wgsl, which also serves a norm and one matmul.

use super::{Runs, WORKGROUP_BYTES, product, row_per_token, staged_bytes};
use crate::emit::{Emitter, Extent, Grid, NONE, Rows};
use moe_run_graph::groups::parts::{Norm, Product, Sum};
use moe_run_graph::groups::{Group, MatMulResidual};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

const LANES: usize = 64;
/// Rows of a workgroup.
const ROWS: u32 = 8;

impl Runs for MatMulResidual {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let MatMulResidual { product: p, add: Sum { node: _, other: _, y: _ } } = self;
        product(graph, p).is_some_and(|m| staged_bytes(m.cols) + LANES * 16 <= WORKGROUP_BYTES)
            && row_per_token(graph, p.x)
    }

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        let MatMulResidual { product, add } = self;
        let row = Row {
            x: e.at(product.x)?,
            norm: None,
            product: e.stored(product.y).unwrap_or(NONE),
            residual: e.at(add.other)?,
            y: e.output(add.y),
        };
        emit(e, product, &row, ROWS)
    }
}

/// What stands around the matmul.
pub(super) struct Row<'a> {
    pub x: u32,
    pub norm: Option<&'a Norm>,
    pub product: u32,
    pub residual: u32,
    pub y: u32,
}

pub(super) fn emit(
    e: &mut Emitter<'_>,
    product: &Product,
    row: &Row<'_>,
    rows_each: u32,
) -> Result<(), BackendError> {
    let graph = &e.plan.graph;
    let matrix =
        super::product(graph, product).ok_or_else(|| BackendError::mismatch(MatMulResidual::NAME))?;
    let layout = e.layout(&product.weight)?;
    let (rows, cols) = (matrix.rows as u32, matrix.cols as u32);
    let sizes = [("LANES", LANES as u32), ("ROWS", rows_each), ("COLS", cols)];
    let input = e.input_kind(matrix.format);
    let variant = e.variant("norm_matmul", &sizes).weight("weight", matrix.format).input(input);
    let params = [
        ("x", row.x.into()),
        ("norm", e.small(row.norm.and_then(|n| n.weight))?.into()),
        ("eps", row.norm.map_or(0.0, |n| n.eps).into()),
        ("cols", cols.into()),
        ("normed", row.norm.and_then(|n| e.stored(n.y)).unwrap_or(NONE).into()),
        ("rows", rows.into()),
        ("first", (matrix.first as u32).into()),
        ("bias", e.small(product.bias)?.into()),
        ("scale", product.scale.unwrap_or(1.0).into()),
        ("product", row.product.into()),
        ("residual", row.residual.into()),
        ("y", row.y.into()),
        ("weight_row_words", (layout.row_words as u32).into()),
        ("weight_blocks", (layout.blocks as u32).into()),
    ];
    let tokens = Extent::Rows { rows: Rows::of(e.shape(product.y)), times: 1, over: 1 };
    e.push(variant, Grid::new(Extent::Fixed(rows.div_ceil(rows_each)), tokens, Extent::Fixed(1)), &params);
    e.bind_part(&product.weight, 0);
    Ok(())
}
