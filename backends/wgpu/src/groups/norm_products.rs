//! A norm and the matmuls that read it: q, k and v, or the router's. One goes through norm_matmul.wgsl, two to four through
//! norm_qkv.wgsl.

use super::matmul_residual::{self, Target};
use super::norm_residual::fits_in_front;
use super::{Matrix, Runs, WORKGROUP_BYTES, input_params, product, row_per_token, staged_bytes, whole_norm};
use crate::emit::{Emitter, Extent, Grid, NONE, Rows};
use crate::params::Param;
use moe_run_graph::groups::parts::{Clamped, Product, RowNorm};
use moe_run_graph::groups::{Group, NormQkv, NormResidual, NormRouter, Projection};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

const LANES: usize = 128;
const ROWS: u32 = 16;
/// Rows of a workgroup with one matrix: the router has few.
const ROUTER_ROWS: u32 = 4;

/// The parameters of a matrix, by its name in norm_qkv.wgsl: where its outputs go, rows, the first of them, bias, factor, bounds,
/// where outputs go in front of those, words of a row, blocks.
macro_rules! fields {
    ($name:literal) => {
        (
            $name,
            [
                concat!($name, "_y"),
                concat!($name, "_rows"),
                concat!($name, "_first"),
                concat!($name, "_bias"),
                concat!($name, "_scale"),
                concat!($name, "_bound"),
                concat!($name, "_product"),
                concat!($name, "_row_words"),
                concat!($name, "_blocks"),
            ],
        )
    };
}

/// The matrices that norm_qkv.wgsl takes.
const MATRICES: [(&str, [&str; 9]); 4] =
    [fields!("first"), fields!("second"), fields!("third"), fields!("fourth")];

/// What the shaders compute: what may stand in front, the norm, and what is made of it.
struct Launch<'a> {
    post: Option<&'a NormResidual>,
    norm: &'a RowNorm,
    projections: Vec<(&'a Product, Option<&'a Clamped>)>,
}

/// Of a norm and its projections.
fn of_projections(group: &NormQkv) -> Launch<'_> {
    let NormQkv { norm, projections } = group;
    let projections = projections.iter().map(|Projection { product, bound }| (product, bound.as_ref()));
    Launch { post: None, norm, projections: projections.collect() }
}

/// Of a router's logits.
fn of_router(group: &NormRouter) -> Launch<'_> {
    let NormRouter { post, norm, logits } = group;
    Launch { post: post.as_ref(), norm, projections: logits.iter().map(|product| (product, None)).collect() }
}

fn fits(graph: &Graph, launch: &Launch<'_>) -> bool {
    let Launch { post, norm, projections } = launch;
    let matrices: Option<Vec<Matrix>> = projections.iter().map(|(p, _)| product(graph, p)).collect();
    let Some(matrices) = matrices else { return false };
    let [first, ..] = matrices.as_slice() else { return false };
    let bounds = projections.iter().filter_map(|(_, bound)| *bound);
    whole_norm(norm)
        && row_per_token(graph, norm.x)
        && post.is_none_or(fits_in_front)
        && bounds.into_iter().all(|Clamped { node: _, x: _, limit, y: _ }| *limit > 0.0)
        && matrices.len() <= MATRICES.len()
        // One form of the activations serves all.
        && matrices.iter().all(|m| m.format.is_quantized() == first.format.is_quantized())
        && staged_bytes(first.cols) + LANES * 16 <= WORKGROUP_BYTES
}

impl Runs for NormQkv {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        fits(graph, &of_projections(self))
    }

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        emit(e, Self::NAME, &of_projections(self))
    }
}

impl Runs for NormRouter {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        fits(graph, &of_router(self))
    }

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        emit(e, Self::NAME, &of_router(self))
    }
}

fn emit(e: &mut Emitter<'_>, name: &str, launch: &Launch<'_>) -> Result<(), BackendError> {
    let Launch { post, norm, projections } = launch;
    let input = input_params(e, norm.x, Some(norm), *post)?;
    if let [(product, bound)] = projections[..] {
        let to = Target { bound, add: None, rows_each: ROUTER_ROWS };
        return matmul_residual::emit(e, "norm_matmul", &[], input, product, to);
    }
    let defect = || BackendError::mismatch(name);
    let graph = &e.plan.graph;
    let matrices: Vec<Matrix> =
        projections.iter().map(|(p, _)| product(graph, p)).collect::<Option<_>>().ok_or_else(defect)?;
    let first = matrices.first().ok_or_else(defect)?;
    let sizes = [("LANES", LANES as u32), ("ROWS", ROWS), ("COLS", first.cols as u32)];
    let mut variant = e.variant("norm_qkv", &sizes).input(e.input_kind(first.format));
    let mut params = input;
    let mut fours = 0;
    for (i, (binding, fields)) in MATRICES.into_iter().enumerate() {
        // One that is not there has no rows, and the last one's binding.
        let at = i.min(projections.len() - 1);
        let (matrix, (product, bound)) = (&matrices[at], projections[at]);
        let rows = if at == i { matrix.rows as u32 } else { 0 };
        let layout = e.layout(&product.weight)?;
        fours += rows.div_ceil(4);
        variant = variant.weight(binding, matrix.format);
        let (y, raw) = match bound {
            Some(bound) => (bound.y, e.stored(product.y).unwrap_or(NONE)),
            None => (product.y, NONE),
        };
        let values: [Param; 9] = [
            e.output(y).into(),
            rows.into(),
            (matrix.first as u32).into(),
            e.small(product.bias)?.into(),
            product.scale.unwrap_or(1.0).into(),
            bound.map_or(0.0, |bound| bound.limit).into(),
            raw.into(),
            (layout.row_words as u32).into(),
            (layout.blocks as u32).into(),
        ];
        params.extend(fields.into_iter().zip(values));
    }
    let tokens = Extent::Rows { rows: Rows::of(e.shape(norm.y)), times: 1, over: 1 };
    let groups = Extent::Fixed(fours.div_ceil(ROWS / 4));
    e.push(variant, Grid::new(groups, tokens, Extent::Fixed(1)), &params);
    for i in 0..MATRICES.len() {
        e.bind_part(&projections[i.min(projections.len() - 1)].0.weight, 0);
    }
    Ok(())
}
