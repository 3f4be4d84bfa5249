//! kernels/head_matmul.cu.

use super::matmul::{ROWS_PER_BLOCK, RoundedInput, THREADS, TOKEN_TILE, activations};
use super::{Emit, int};
use crate::driver::Param;
use moe_run_graph::ir::{Node, WeightSlice};
use moe_run_runtime::error::BackendError;

/// Columns of a block of the transposed form.
const COLUMNS_PER_BLOCK: usize = 1024;

pub(super) fn emit(
    emit: &mut Emit<'_>,
    node: &Node,
    weight: &WeightSlice,
    transposed: bool,
) -> Result<(), BackendError> {
    let matrix = emit.weights.matrix(emit.graph, weight);
    let stored = emit.graph.weight(weight.tensor).shape.first().copied().unwrap_or(0);
    let heads = weight.experts.as_ref().map_or(stored, std::ops::Range::len);
    let tokens = emit.rows(node.inputs[0]);
    let y = emit.value(node.outputs[0])?;
    let mut params =
        vec![matrix.code(), matrix.data, Param::U64(matrix.row_bytes), Param::U64(matrix.expert_bytes)];
    if transposed {
        params.extend([emit.value(node.inputs[0])?, y, int(matrix.inner), int(matrix.rows)]);
        let grid = [matrix.inner.div_ceil(COLUMNS_PER_BLOCK), heads, tokens];
        emit.push("head_matmul_transposed", grid, THREADS, 0, params);
        return Ok(());
    }
    let x = activations(emit, node.inputs[0], &matrix)?;
    let kernel = match (&x, tokens > 1) {
        (RoundedInput::F32(_), false) => "head_matmul_f32_t1",
        (RoundedInput::F32(_), true) => "head_matmul_f32_t8",
        (RoundedInput::Q8(..), false) => "head_matmul_q8_t1",
        (RoundedInput::Q8(..), true) => "head_matmul_q8_t8",
    };
    match x {
        RoundedInput::F32(x) => params.push(x),
        RoundedInput::Q8(q, q_scale) => params.extend([q, q_scale]),
    }
    params.extend([y, int(matrix.inner), int(matrix.rows), int(tokens)]);
    let tiles = if tokens > 1 { tokens.div_ceil(TOKEN_TILE) } else { tokens };
    emit.push(kernel, [matrix.rows.div_ceil(ROWS_PER_BLOCK), tiles, heads], THREADS, 0, params);
    Ok(())
}
