//! kernels/norm_matmul.cu: a norm and up to three products of it.

use super::{Runs, any_rows, blocks, int, matmul, normed_bytes, stage, whole_norm};
use crate::driver::Param;
use crate::ops::Emit;
use moe_run_graph::groups::parts::{Norm, Picked, Product};
use moe_run_graph::groups::{FinalNormLmHead, NormQkv, NormRouter};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

const KERNEL: &str = "norm_matmul";
/// The matrices that the kernel takes.
const MAX_MATRICES: usize = 3;
/// Up to so many rows a multiprocessor, whole blocks take rows together.
const SHARED_ROWS_PER_MULTIPROCESSOR: usize = 4;

fn fits(graph: &Graph, norm: &Norm, products: &[Product]) -> bool {
    let any = |product: &Product| {
        let Product { node: _, x: _, weight, bias: _, scale: _, y: _ } = product;
        any_rows(graph, weight)
    };
    whole_norm(graph, norm) && products.len() <= MAX_MATRICES && products.iter().all(any)
}

impl Runs for NormQkv {
    const KERNEL: &'static str = KERNEL;

    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let NormQkv { norm, products } = self;
        fits(graph, norm, products)
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        norm_matmul(emit, None, &self.norm, &self.products)
    }
}

impl Runs for NormRouter {
    const KERNEL: &'static str = KERNEL;

    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let NormRouter { norm, logits } = self;
        fits(graph, norm, logits)
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        norm_matmul(emit, None, &self.norm, &self.logits)
    }
}

impl Runs for FinalNormLmHead {
    const KERNEL: &'static str = KERNEL;

    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let FinalNormLmHead { picked: Picked { node: _, x: _, rows: _, y: _ }, norm, product } = self;
        fits(graph, norm, std::slice::from_ref(product))
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        norm_matmul(emit, Some(&self.picked), &self.norm, std::slice::from_ref(&self.product))
    }
}

fn norm_matmul(
    emit: &mut Emit<'_>,
    picked: Option<&Picked>,
    norm: &Norm,
    products: &[Product],
) -> Result<(), BackendError> {
    let n = emit.width(norm.x)?;
    let mut forms = 0;
    let mut all_rows = 0;
    let mut matrices = Vec::with_capacity(7 * MAX_MATRICES);
    for Product { node: _, x: _, weight, bias, scale, y } in products {
        let matrix = emit.weights.matrix(emit.graph, weight);
        forms |= stage(emit, matrix.format);
        all_rows += matrix.rows;
        matrices.extend([
            matrix.code(),
            matrix.data,
            Param::U64(matrix.row_bytes),
            emit.weights.opt_vector(*bias),
            Param::F32(scale.unwrap_or(1.0)),
            emit.value(*y)?,
            int(matrix.rows),
        ]);
    }
    while matrices.len() < 7 * MAX_MATRICES {
        let none = [int(0), Param::NULL, Param::U64(0), Param::NULL, Param::F32(1.0), Param::NULL, int(0)];
        matrices.extend(none);
    }
    let (x, row_index) = match picked {
        Some(picked) => (emit.value(picked.x)?, emit.value(picked.rows)?),
        None => (emit.value(norm.x)?, Param::NULL),
    };
    let outputs = emit.rows(norm.y);
    // A warp a row would leave most multiprocessors without one.
    let shared_rows = all_rows <= SHARED_ROWS_PER_MULTIPROCESSOR * emit.scratch.multiprocessors as usize;
    let mut params = vec![
        x,
        row_index,
        emit.weights.opt_vector(norm.weight),
        Param::F32(norm.eps),
        emit.opt_value(norm.y),
        int(n),
        Param::I32(forms),
        int(usize::from(shared_rows)),
    ];
    params.append(&mut matrices);
    let grid = [if shared_rows { all_rows } else { blocks(emit, all_rows) }, outputs, 1];
    emit.push(KERNEL, grid, matmul::THREADS, normed_bytes(n, forms), params);
    Ok(())
}
