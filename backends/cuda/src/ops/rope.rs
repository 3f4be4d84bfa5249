//! kernels/rope.cu.

use super::{Emit, int, threads_for};
use moe_run_graph::ir::{Node, RopePairing, RopeTableId};
use moe_run_runtime::error::BackendError;

pub(super) fn emit(
    emit: &mut Emit<'_>,
    node: &Node,
    table: RopeTableId,
    pairing: RopePairing,
    heads: usize,
) -> Result<(), BackendError> {
    let tokens = emit.rows(node.inputs[0]);
    let d = emit.width(node.inputs[0])? / heads.max(1);
    let params = vec![
        emit.value(node.inputs[0])?,
        emit.value(node.inputs[1])?,
        emit.rope_tables[table.index()].param(),
        emit.value(node.outputs[0])?,
        int(d),
        int(emit.graph.rope_tables[table.index()].dims),
        int(usize::from(pairing == RopePairing::Interleaved)),
        int(emit.positions_capacity),
    ];
    emit.push("rope", [heads, tokens, 1], threads_for(d), 0, params);
    Ok(())
}
