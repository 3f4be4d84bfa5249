//! A matmul and the addition to the residual stream; norm_matmul.wgsl, which also serves a norm and one matmul.

use super::{Runs, WORKGROUP_BYTES, input_params, product, row_per_token, staged_bytes};
use crate::emit::{Emitter, Extent, Grid, NONE, Rows};
use crate::params::Param;
use moe_run_graph::groups::MatMulResidual;
use moe_run_graph::groups::parts::{Clamped, Product, Sum};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

pub(super) const LANES: usize = 64;
/// Rows of a workgroup.
pub(super) const ROWS: u32 = 8;

impl Runs for MatMulResidual {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let MatMulResidual { product: p, add: Sum { node: _, other: _, y: _ } } = self;
        product(graph, p).is_some_and(|m| staged_bytes(m.cols) + LANES * 16 <= WORKGROUP_BYTES)
            && row_per_token(graph, p.x)
    }

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        let MatMulResidual { product, add } = self;
        let input = input_params(e, product.x, None, None)?;
        let to = Target { bound: None, add: Some(add), rows_each: ROWS };
        emit(e, "norm_matmul", &[], input, product, to)
    }
}

/// What stands behind a product, and how many rows of it a workgroup computes.
pub(super) struct Target<'a> {
    pub bound: Option<&'a Clamped>,
    pub add: Option<&'a Sum>,
    pub rows_each: u32,
}

/// A product by a shader with `common/product_rows.wgsl`, whose own sizes and parameters are given.
pub(super) fn emit(
    e: &mut Emitter<'_>,
    shader: &'static str,
    sizes: &[(&'static str, u32)],
    input: Vec<(&'static str, Param)>,
    product: &Product,
    to: Target<'_>,
) -> Result<(), BackendError> {
    let graph = &e.plan.graph;
    let matrix = super::product(graph, product).ok_or_else(|| BackendError::mismatch(shader))?;
    let layout = e.layout(&product.weight)?;
    let (rows, cols) = (matrix.rows as u32, matrix.cols as u32);
    let common = [("LANES", LANES as u32), ("ROWS", to.rows_each), ("COLS", cols)];
    let sizes: Vec<(&'static str, u32)> = common.into_iter().chain(sizes.iter().copied()).collect();
    let kind = e.input_kind(matrix.format);
    let variant = e.variant(shader, &sizes).weight("weight", matrix.format).input(kind);
    // What comes last is the result; what comes before it is written if somebody reads it.
    let y = to.add.map(|add| add.y).or(to.bound.map(|bound| bound.y)).unwrap_or(product.y);
    let raw = if y == product.y { NONE } else { e.stored(product.y).unwrap_or(NONE) };
    let mut params = input;
    params.extend([
        ("rows", rows.into()),
        ("first", (matrix.first as u32).into()),
        ("bias", e.small(product.bias)?.into()),
        ("scale", product.scale.unwrap_or(1.0).into()),
        ("product", raw.into()),
        ("bound", to.bound.map_or(0.0, |bound| bound.limit).into()),
        ("residual", to.add.map_or(Ok(NONE), |add| e.at(add.other))?.into()),
        ("y", e.output(y).into()),
        ("weight_row_words", (layout.row_words as u32).into()),
        ("weight_blocks", (layout.blocks as u32).into()),
    ]);
    let tokens = Extent::Rows { rows: Rows::of(e.shape(product.y)), times: 1, over: 1 };
    let grid = Grid::new(Extent::Fixed(rows.div_ceil(to.rows_each)), tokens, Extent::Fixed(1));
    e.push(variant, grid, &params);
    e.bind_part(&product.weight, 0);
    Ok(())
}
