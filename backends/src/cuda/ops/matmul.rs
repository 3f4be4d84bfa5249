//! kernels/matmul.cu, with the activations prepared by kernels/quantize_q8.cu.

use super::{Emit, int, threads_for};
use crate::cuda::buffers::Matrix;
use crate::cuda::driver::Param;
use crate::error::BackendError;
use moe_run_graph::ir::{Node, ValueId, WeightId, WeightSlice};
use moe_run_graph::quant::Activation;

/// Warps of a block, and so weight rows that a block takes.
pub(in crate::cuda) const ROWS_PER_BLOCK: usize = 8;
pub(in crate::cuda) const THREADS: u32 = 32 * ROWS_PER_BLOCK as u32;
/// Tokens that share a decoded weight row.
const TOKEN_TILE: usize = 8;

/// Activations as a matmul kernel takes them.
pub(super) enum Activations {
    /// [rows, n] f32.
    F32(Param),
    /// Steps and scales.
    Q8(Param, Param),
}

/// Rounds a value as the profile says for a matrix of this format, into the scratch.
pub(super) fn activations(
    emit: &mut Emit<'_>,
    x: ValueId,
    matrix: &Matrix,
) -> Result<Activations, BackendError> {
    let elems = emit.elems(x);
    let source = emit.value(x)?;
    match emit.profile.for_weights(matrix.format) {
        Activation::F32 => Ok(Activations::F32(source)),
        Activation::F16 => {
            let rounded = emit.scratch.rounded(elems);
            let threads = threads_for(elems);
            let params = vec![source, rounded, int(elems)];
            emit.push("round_f16", [elems.div_ceil(threads as usize), 1, 1], threads, 0, params);
            Ok(Activations::F32(rounded))
        }
        Activation::Q8(_) => {
            let (q, scale) = emit.scratch.quantized(elems);
            let blocks = elems / 32;
            let params = vec![source, q, scale, int(blocks)];
            emit.push("quantize_q8", [blocks.div_ceil(ROWS_PER_BLOCK), 1, 1], THREADS, 0, params);
            Ok(Activations::Q8(q, scale))
        }
    }
}

pub(super) fn emit(
    emit: &mut Emit<'_>,
    node: &Node,
    weight: &WeightSlice,
    bias: Option<WeightId>,
    scale: Option<f32>,
) -> Result<(), BackendError> {
    let matrix = emit.weights.matrix(emit.graph, weight);
    let tokens = emit.rows(node.inputs[0]);
    let x = activations(emit, node.inputs[0], &matrix)?;
    let mut params = vec![matrix.code(), matrix.data, Param::U64(matrix.row_bytes)];
    let kernel = match (&x, tokens > 1) {
        (Activations::F32(_), false) => "matmul_f32_t1",
        (Activations::F32(_), true) => "matmul_f32_t8",
        (Activations::Q8(..), false) => "matmul_q8_t1",
        (Activations::Q8(..), true) => "matmul_q8_t8",
    };
    match x {
        Activations::F32(x) => params.push(x),
        Activations::Q8(q, q_scale) => params.extend([q, q_scale]),
    }
    params.extend([
        emit.weights.opt_vector(bias),
        Param::F32(scale.unwrap_or(1.0)),
        emit.value(node.outputs[0])?,
        int(matrix.inner),
        int(matrix.rows),
        int(tokens),
        int(matrix.rows),
    ]);
    let tiles = if tokens > 1 { tokens.div_ceil(TOKEN_TILE) } else { tokens };
    emit.push(kernel, [matrix.rows.div_ceil(ROWS_PER_BLOCK), tiles, 1], THREADS, 0, params);
    Ok(())
}
