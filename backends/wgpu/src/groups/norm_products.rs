//! RmsNorm and the matmuls that read it: q, k and v, or the router's. One goes through norm_matmul.wgsl, two or three through
//! norm_qkv.wgsl.

use super::{
    Matrix, Runs, WORKGROUP_BYTES, matmul_residual, product, row_per_token, staged_bytes, whole_norm,
};
use crate::emit::{Emitter, Extent, Grid, NONE, Rows};
use crate::params::Param;
use moe_run_graph::groups::parts::{Norm, Product};
use moe_run_graph::groups::{Group, NormQkv, NormRouter};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

const LANES: usize = 128;
const ROWS: u32 = 16;
/// Rows of a workgroup with one matrix: the router has few.
const ROUTER_ROWS: u32 = 4;
/// Matrices that norm_qkv.wgsl takes, by their names there.
const NAMES: [&str; 3] = ["query", "key", "value"];

fn fits(graph: &Graph, norm: &Norm, products: &[Product]) -> bool {
    let matrices: Option<Vec<Matrix>> = products.iter().map(|p| product(graph, p)).collect();
    let Some(matrices) = matrices else { return false };
    let [first, ..] = matrices.as_slice() else { return false };
    whole_norm(norm)
        && row_per_token(graph, norm.x)
        && matrices.len() <= NAMES.len()
        // One form of the activations serves all.
        && matrices.iter().all(|m| m.format.is_quantized() == first.format.is_quantized())
        && staged_bytes(first.cols) + LANES * 16 <= WORKGROUP_BYTES
}

impl Runs for NormQkv {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let NormQkv { norm, products } = self;
        fits(graph, norm, products)
    }

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        emit(e, Self::NAME, &self.norm, &self.products)
    }
}

impl Runs for NormRouter {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let NormRouter { norm, logits } = self;
        fits(graph, norm, logits)
    }

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        emit(e, Self::NAME, &self.norm, &self.logits)
    }
}

fn emit(e: &mut Emitter<'_>, name: &str, norm: &Norm, products: &[Product]) -> Result<(), BackendError> {
    if let [product] = products {
        let row = matmul_residual::Row {
            x: e.at(norm.x)?,
            norm: Some(norm),
            product: NONE,
            residual: NONE,
            y: e.output(product.y),
        };
        return matmul_residual::emit(e, product, &row, ROUTER_ROWS);
    }
    let defect = || BackendError::mismatch(name);
    let graph = &e.plan.graph;
    let matrices: Vec<Matrix> =
        products.iter().map(|p| product(graph, p)).collect::<Option<_>>().ok_or_else(defect)?;
    let first = matrices.first().ok_or_else(defect)?;
    let sizes = [("LANES", LANES as u32), ("ROWS", ROWS), ("COLS", first.cols as u32)];
    let mut variant = e.variant("norm_qkv", &sizes).input(e.input_kind(first.format));
    let mut params: Vec<(&'static str, Param)> = vec![
        ("x", e.at(norm.x)?.into()),
        ("norm", e.small(norm.weight)?.into()),
        ("eps", norm.eps.into()),
        ("cols", (first.cols as u32).into()),
        ("normed", e.stored(norm.y).unwrap_or(NONE).into()),
    ];
    let mut fours = 0;
    for (i, binding) in NAMES.into_iter().enumerate() {
        // A third that is not there has no rows, and the second's binding.
        let at = i.min(products.len() - 1);
        let (matrix, product) = (&matrices[at], &products[at]);
        let rows = if at == i { matrix.rows as u32 } else { 0 };
        let layout = e.layout(&product.weight)?;
        fours += rows.div_ceil(4);
        variant = variant.weight(binding, matrix.format);
        params.extend(fields(binding).into_iter().zip([
            e.output(product.y).into(),
            rows.into(),
            (matrix.first as u32).into(),
            e.small(product.bias)?.into(),
            product.scale.unwrap_or(1.0).into(),
            (layout.row_words as u32).into(),
            Param::from(layout.blocks as u32),
        ]));
    }
    let tokens = Extent::Rows { rows: Rows::of(e.shape(norm.y)), times: 1, over: 1 };
    let groups = Extent::Fixed(fours.div_ceil(ROWS / 4));
    e.push(variant, Grid::new(groups, tokens, Extent::Fixed(1)), &params);
    for i in 0..NAMES.len() {
        e.bind_part(&products[i.min(products.len() - 1)].weight, 0);
    }
    Ok(())
}

/// The parameters of a matrix: where its outputs go, rows, the first of them, bias, scale, words of a row, blocks.
fn fields(binding: &str) -> [&'static str; 7] {
    match binding {
        "query" => [
            "query_y",
            "query_rows",
            "query_first",
            "query_bias",
            "query_scale",
            "query_row_words",
            "query_blocks",
        ],
        "key" => ["key_y", "key_rows", "key_first", "key_bias", "key_scale", "key_row_words", "key_blocks"],
        _ => [
            "value_y",
            "value_rows",
            "value_first",
            "value_bias",
            "value_scale",
            "value_row_words",
            "value_blocks",
        ],
    }
}
