//! kernels/norm_matmul.cu: a norm and up to four products of it.

use super::norm_residual::{fits_in_front, in_front_params};
use super::{Runs, any_rows, blocks, int, matmul, norm_params, normed_bytes, one_row, stage, whole_norm};
use crate::driver::Param;
use crate::ops::Emit;
use moe_run_graph::groups::parts::{Clamped, Picked, Product, RowNorm};
use moe_run_graph::groups::{FinalNormLmHead, NormQkv, NormResidual, NormRouter, Projection};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

const KERNEL: &str = "norm_matmul";
/// The matrices that the kernel takes.
const MAX_MATRICES: usize = 4;
/// Up to so many rows a multiprocessor, whole blocks take rows together.
const SHARED_ROWS_PER_MULTIPROCESSOR: usize = 4;

/// What the kernel computes: what may stand in front, the norm, and what is made of it.
struct Launch<'a> {
    picked: Option<&'a Picked>,
    post: Option<&'a NormResidual>,
    norm: &'a RowNorm,
    projections: Vec<(&'a Product, Option<&'a Clamped>)>,
}

impl<'a> Launch<'a> {
    fn of(norm: &'a RowNorm, products: &'a [Product]) -> Launch<'a> {
        let projections = products.iter().map(|product| (product, None)).collect();
        Launch { picked: None, post: None, norm, projections }
    }
}

fn fits(graph: &Graph, launch: &Launch<'_>) -> bool {
    let Launch { picked: _, post, norm, projections } = launch;
    let any = |(product, bound): &(&Product, Option<&Clamped>)| {
        let Product { node: _, x: _, weight, bias: _, scale: _, y: _ } = product;
        any_rows(graph, weight) && bound.is_none_or(|Clamped { node: _, x: _, limit, y: _ }| *limit > 0.0)
    };
    whole_norm(graph, norm)
        && post.is_none_or(|post| fits_in_front(graph, post) && one_row(graph, norm.x))
        && projections.len() <= MAX_MATRICES
        && projections.iter().all(any)
}

/// The launch of a norm and its projections.
fn of_projections(group: &NormQkv) -> Launch<'_> {
    let NormQkv { norm, projections } = group;
    let projections = projections.iter().map(|Projection { product, bound }| (product, bound.as_ref()));
    Launch { picked: None, post: None, norm, projections: projections.collect() }
}

impl Runs for NormQkv {
    const KERNEL: &'static str = KERNEL;

    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        fits(graph, &of_projections(self))
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        norm_matmul(emit, &of_projections(self))
    }
}

/// The launch of a router's logits.
fn of_router(group: &NormRouter) -> Launch<'_> {
    let NormRouter { post, norm, logits } = group;
    Launch { post: post.as_ref(), ..Launch::of(norm, logits) }
}

impl Runs for NormRouter {
    const KERNEL: &'static str = KERNEL;

    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        fits(graph, &of_router(self))
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        norm_matmul(emit, &of_router(self))
    }
}

/// The launch of logits.
fn of_logits(group: &FinalNormLmHead) -> Launch<'_> {
    let FinalNormLmHead { picked, norm, product } = group;
    Launch { picked: Some(picked), ..Launch::of(norm, std::slice::from_ref(product)) }
}

impl Runs for FinalNormLmHead {
    const KERNEL: &'static str = KERNEL;

    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let Picked { node: _, x: _, rows: _, y: _ } = &self.picked;
        fits(graph, &of_logits(self))
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        norm_matmul(emit, &of_logits(self))
    }
}

fn norm_matmul(emit: &mut Emit<'_>, launch: &Launch<'_>) -> Result<(), BackendError> {
    let Launch { picked, post, norm, projections } = launch;
    let n = emit.width(norm.x)?;
    let mut forms = 0;
    let mut all_rows = 0;
    let mut matrices = Vec::with_capacity(9 * MAX_MATRICES);
    for (Product { node: _, x: _, weight, bias, scale, y }, bound) in projections {
        let matrix = emit.weights.matrix(emit.graph, weight);
        forms |= stage(emit, matrix.format);
        all_rows += matrix.rows;
        // What the bound makes is the result; what comes before it is written if somebody reads it.
        let (limit, raw, y) = match bound {
            Some(bound) => (bound.limit, emit.opt_value(*y), bound.y),
            None => (0.0, Param::NULL, *y),
        };
        matrices.extend([
            matrix.code(),
            matrix.data,
            Param::U64(matrix.row_bytes),
            emit.weights.opt_vector(*bias),
            Param::F32(scale.unwrap_or(1.0)),
            Param::F32(limit),
            raw,
            emit.value(y)?,
            int(matrix.rows),
        ]);
    }
    while matrices.len() < 9 * MAX_MATRICES {
        let (none, factor) = (Param::NULL, Param::F32(0.0));
        matrices.extend([int(0), none, Param::U64(0), none, factor, factor, none, none, int(0)]);
    }
    let (x, row_index) = match (picked, post) {
        (Some(picked), _) => (emit.value(picked.x)?, emit.value(picked.rows)?),
        (None, Some(post)) => (emit.value(post.norm.x)?, Param::NULL),
        (None, None) => (emit.value(norm.x)?, Param::NULL),
    };
    let outputs = emit.rows(norm.y);
    // A warp a row would leave most multiprocessors without one.
    let shared_rows = all_rows <= SHARED_ROWS_PER_MULTIPROCESSOR * emit.scratch.multiprocessors as usize;
    let mut params = vec![x, row_index];
    params.extend(match post {
        Some(post) => in_front_params(emit, post)?,
        None => [Param::NULL, Param::F32(0.0), Param::NULL, Param::NULL, Param::NULL],
    });
    params.extend(norm_params(emit, Some(norm)));
    params.extend([emit.opt_value(norm.y), int(n), Param::I32(forms), int(usize::from(shared_rows))]);
    params.append(&mut matrices);
    let shared = normed_bytes(n, forms);
    let blocks = if shared_rows { all_rows } else { blocks(emit, KERNEL, all_rows, shared)? };
    emit.push(KERNEL, [blocks, outputs, 1], matmul::THREADS, shared, params);
    Ok(())
}
