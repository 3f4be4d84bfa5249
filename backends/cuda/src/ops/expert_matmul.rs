//! kernels/expert_matmul.cu: by pair for one token, grouped by expert for more; kernels/matmul_tiles.cu for many on matrix
//! units.

use super::matmul::{ROWS_PER_BLOCK, RoundedInput, THREADS, TILE_ROWS, TILES_FROM_TOKENS, activations};
use super::scratch::EXPERT_TILE;
use super::{Emit, MAX_EXPERTS, int};
use crate::driver::Param;
use moe_run_graph::ir::{Graph, Node, WeightId, WeightSlice};
use moe_run_runtime::error::BackendError;

/// What experts ask for that the kernels lack: a block that sorts has a thread for each.
pub(super) fn lacking(graph: &Graph, weight: &WeightSlice) -> Option<String> {
    let experts = graph.weight(weight.tensor).shape.first().copied().unwrap_or(0);
    (experts > MAX_EXPERTS).then(|| format!("{experts} experts; wanted at most {MAX_EXPERTS}"))
}

pub(super) fn emit(
    emit: &mut Emit<'_>,
    node: &Node,
    weight: &WeightSlice,
    bias: Option<WeightId>,
) -> Result<(), BackendError> {
    let matrix = emit.weights.matrix(emit.graph, weight);
    let experts = weight
        .experts
        .as_ref()
        .map_or_else(|| emit.graph.weight(weight.tensor).shape[0], std::ops::Range::len);
    let pairs = emit.elems(node.inputs[1]);
    let slots_per_x = pairs / emit.rows(node.inputs[0]).max(1);
    // One token's pairs are all different experts: nothing to share.
    let grouped = emit.rows(node.inputs[1]) > 1;
    let x = activations(emit, node.inputs[0], &matrix)?;
    let ids = emit.value(node.inputs[1])?;
    if let RoundedInput::Q8(q, q_scale) = x
        && emit.matrix_units
        && emit.rows(node.inputs[1]) >= TILES_FROM_TOKENS
    {
        let order = emit.scratch.order.slice(0, 4 * pairs as u64);
        let first = emit.scratch.first.slice(0, 4 * (experts as u64 + 1));
        if emit.prepared.sorted != Some(node.inputs[1]) {
            emit.prepared.sorted = Some(node.inputs[1]);
            let params = vec![ids, order, first, int(pairs), int(experts)];
            emit.push("expert_order", [experts, 1, 1], THREADS, 0, params);
        }
        let params = vec![
            matrix.code(),
            matrix.data,
            Param::U64(matrix.row_bytes),
            Param::U64(matrix.expert_bytes),
            q,
            q_scale,
            order,
            first,
            emit.weights.opt_vector(bias),
            Param::F32(1.0),
            emit.value(node.outputs[0])?,
            int(matrix.inner),
            int(matrix.rows),
            int(pairs),
            int(slots_per_x),
        ];
        emit.push("matmul_tiles", [matrix.rows.div_ceil(TILE_ROWS), experts, 1], THREADS, 0, params);
        return Ok(());
    }

    let mut params = vec![
        matrix.code(),
        matrix.data,
        Param::U64(matrix.row_bytes),
        Param::U64(matrix.expert_bytes),
        Param::NULL, // every expert is at the place of its id
    ];
    let is_q8 = matches!(x, RoundedInput::Q8(..));
    match x {
        RoundedInput::F32(x) => params.push(x),
        RoundedInput::Q8(q, q_scale) => params.extend([q, q_scale]),
    }
    let tiles = pairs / EXPERT_TILE + experts.min(pairs);
    if grouped {
        let scratch = emit.scratch;
        let (order, list, count) = (
            scratch.order.slice(0, 4 * pairs as u64),
            scratch.tiles.slice(0, 12 * tiles as u64),
            scratch.tile_count.param(),
        );
        emit.prepared.sorted = None;
        let sort = vec![ids, order, list, count, int(pairs), int(experts)];
        emit.push("expert_sort", [1, 1, 1], experts.next_multiple_of(32).max(32) as u32, 0, sort);
        params.extend([order, list, count]);
    } else {
        params.push(ids);
    }
    params.extend([
        emit.weights.opt_vector(bias),
        emit.value(node.outputs[0])?,
        int(matrix.inner),
        int(matrix.rows),
        int(slots_per_x),
    ]);
    let kernel = match (grouped, is_q8) {
        (false, false) => "expert_matmul_f32",
        (false, true) => "expert_matmul_q8",
        (true, false) => "expert_matmul_grouped_f32",
        (true, true) => "expert_matmul_grouped_q8",
    };
    let columns = if grouped { tiles } else { pairs };
    emit.push(kernel, [matrix.rows.div_ceil(ROWS_PER_BLOCK), columns, 1], THREADS, 0, params);
    Ok(())
}
