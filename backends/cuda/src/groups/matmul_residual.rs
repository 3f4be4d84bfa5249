//! kernels/matmul_residual.cu.

use super::{MAX_STAGED_ELEMS, Runs, any_rows, blocks, int, matmul, one_row, stage, staged_bytes, width};
use crate::driver::Param;
use crate::ops::Emit;
use moe_run_graph::groups::parts::{Product, Sum};
use moe_run_graph::groups::{Group, MatMulResidual};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

impl Runs for MatMulResidual {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let MatMulResidual { product, add: Sum { node: _, other: _, y: _ } } = self;
        let Product { node: _, x, weight, bias: _, scale: _, y: _ } = product;
        any_rows(graph, weight) && one_row(graph, *x) && width(graph, *x) <= MAX_STAGED_ELEMS
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        let MatMulResidual { product, add } = self;
        let matrix = emit.weights.matrix(emit.graph, &product.weight);
        let forms = stage(emit, matrix.format);
        let params = vec![
            emit.value(product.x)?,
            matrix.code(),
            matrix.data,
            Param::U64(matrix.row_bytes),
            emit.weights.opt_vector(product.bias),
            Param::F32(product.scale.unwrap_or(1.0)),
            emit.value(add.other)?,
            emit.opt_value(product.y),
            emit.value(add.y)?,
            int(matrix.inner),
            int(matrix.rows),
            Param::I32(forms),
        ];
        let shared = staged_bytes(matrix.inner, forms);
        let grid = [blocks(emit, Self::NAME, matrix.rows, shared)?, 1, 1];
        emit.push(Self::NAME, grid, matmul::THREADS, shared, params);
        Ok(())
    }
}
