//! kernels/matmul.cu, with the activations prepared by kernels/quantize_q8.cu.

use super::{Emit, int, threads_for};
use crate::driver::Param;
use crate::weights::Matrix;
use moe_run_graph::ir::{Node, ValueId, WeightId, WeightSlice};
use moe_run_graph::quant::ActivationPrecision;
use moe_run_runtime::error::BackendError;

/// Warps of a block, and so weight rows that a block takes.
pub(crate) const ROWS_PER_BLOCK: usize = 8;
pub(crate) const THREADS: u32 = 32 * ROWS_PER_BLOCK as u32;
/// Tokens that share a decoded weight row.
pub(super) const TOKEN_TILE: usize = 8;
/// From so many tokens on whole tiles are multiplied, where the device has matrix units.
pub(crate) const TILES_FROM_TOKENS: usize = 9;
/// Weight rows and tokens of a tile: TILE_ROWS and TILE_TOKENS in kernels/matmul_tiles.cu.
pub(super) const TILE_ROWS: usize = 128;
const TILE_TOKENS: usize = 32;

/// The input of a product as its kernel takes it.
pub(super) enum RoundedInput {
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
) -> Result<RoundedInput, BackendError> {
    let elems = emit.elems(x);
    let source = emit.value(x)?;
    match emit.profile.for_weights(matrix.format) {
        ActivationPrecision::F32 => Ok(RoundedInput::F32(source)),
        ActivationPrecision::F16 => {
            let rounded = emit.scratch.rounded(elems);
            emit.prepared.quantized = None;
            let threads = threads_for(elems);
            let params = vec![source, rounded, int(elems)];
            emit.push("round_f16", [elems.div_ceil(threads as usize), 1, 1], threads, 0, params);
            Ok(RoundedInput::F32(rounded))
        }
        ActivationPrecision::Q8(_) => {
            let (q, scale) = emit.scratch.quantized(elems);
            if emit.prepared.quantized == Some(x) {
                return Ok(RoundedInput::Q8(q, scale));
            }
            emit.prepared.quantized = Some(x);
            let blocks = elems / 32;
            let params = vec![source, q, scale, int(blocks)];
            emit.push("quantize_q8", [blocks.div_ceil(ROWS_PER_BLOCK), 1, 1], THREADS, 0, params);
            Ok(RoundedInput::Q8(q, scale))
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
    if let RoundedInput::Q8(q, q_scale) = x
        && emit.matrix_units
        && tokens >= TILES_FROM_TOKENS
    {
        let params = vec![
            matrix.code(),
            matrix.data,
            Param::U64(matrix.row_bytes),
            Param::U64(0),
            q,
            q_scale,
            Param::NULL,
            Param::NULL,
            emit.weights.opt_vector(bias),
            Param::F32(scale.unwrap_or(1.0)),
            emit.value(node.outputs[0])?,
            int(matrix.inner),
            int(matrix.rows),
            int(tokens),
            int(1),
        ];
        let grid = [matrix.rows.div_ceil(TILE_ROWS), tokens.div_ceil(TILE_TOKENS), 1];
        emit.push("matmul_tiles", grid, THREADS, 0, params);
        return Ok(());
    }
    let mut params = vec![matrix.code(), matrix.data, Param::U64(matrix.row_bytes)];
    let kernel = match (&x, tokens > 1) {
        (RoundedInput::F32(_), false) => "matmul_f32_t1",
        (RoundedInput::F32(_), true) => "matmul_f32_t8",
        (RoundedInput::Q8(..), false) => "matmul_q8_t1",
        (RoundedInput::Q8(..), true) => "matmul_q8_t8",
    };
    match x {
        RoundedInput::F32(x) => params.push(x),
        RoundedInput::Q8(q, q_scale) => params.extend([q, q_scale]),
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
