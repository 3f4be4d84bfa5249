//! kernels/down_combine.cu.

use super::{MAX_STAGED_ELEMS, Runs, any_experts, blocks, int, matmul, one_row, stage, staged_bytes};
use crate::driver::Param;
use crate::ops::Emit;
use moe_run_graph::groups::parts::{Combined, Sum};
use moe_run_graph::groups::{DownCombine, Group, SharedExpert, SharedGate};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

impl Runs for DownCombine {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let DownCombine { down, combined: Combined { node: _, x: _, weights: _, y: _ }, shared, add } = self;
        let sums = |shared: &SharedExpert| {
            let SharedExpert { x, gate, add: Sum { node: _, other: _, y: _ } } = shared;
            one_row(graph, *x) && gate.as_ref().is_none_or(SharedGate::is_sigmoid)
        };
        any_experts(graph, down)
            && graph.value(down.x).shape.0.len() == 3
            && graph.value(down.x).shape.fixed_elems() <= MAX_STAGED_ELEMS
            && shared.as_ref().is_none_or(sums)
            && add.as_ref().is_none_or(|Sum { node: _, other: _, y: _ }| true)
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        let DownCombine { down, combined, shared, add } = self;
        let matrix = emit.weights.matrix(emit.graph, &down.weight);
        let per_tok = emit.elems(down.ids);
        let forms = stage(emit, matrix.format);
        // Whole rows a lane group: 8 lanes read a 256-block's chunks together; a warp has four experts under way then.
        let width = match matrix.inner {
            0..=1024 if per_tok > 2 => 8,
            0..=2048 if per_tok > 1 => 16,
            _ => 32,
        };
        let gate = shared.as_ref().and_then(|shared| shared.gate.as_ref());
        let mut params = vec![
            emit.value(down.x)?,
            emit.value(down.ids)?,
            emit.value(combined.weights)?,
            matrix.code(),
            matrix.data,
            Param::U64(matrix.row_bytes),
            Param::U64(matrix.expert_bytes),
            emit.weights.opt_vector(down.bias),
            shared.as_ref().map_or(Ok(Param::NULL), |shared| emit.value(shared.x))?,
        ];
        params.extend(match gate {
            Some(SharedGate { routing, gated }) => [
                emit.value(routing.logits)?,
                Param::F32(routing.attrs.scale),
                emit.opt_value(routing.ids),
                emit.opt_value(routing.weights),
                emit.opt_value(gated.y),
            ],
            None => [Param::NULL, Param::F32(1.0), Param::NULL, Param::NULL, Param::NULL],
        });
        // What the last addition makes is the result; what comes before it is written if somebody reads it.
        let (y, with_shared, sum) = match (add, shared) {
            (Some(add), Some(shared)) => (add.y, emit.opt_value(shared.add.y), emit.opt_value(combined.y)),
            (Some(add), None) => (add.y, Param::NULL, emit.opt_value(combined.y)),
            (None, Some(shared)) => (shared.add.y, Param::NULL, emit.opt_value(combined.y)),
            (None, None) => (combined.y, Param::NULL, Param::NULL),
        };
        params.extend([
            with_shared,
            add.as_ref().map_or(Ok(Param::NULL), |add| emit.value(add.other))?,
            emit.opt_value(down.y),
            sum,
            emit.value(y)?,
            int(matrix.inner),
            int(matrix.rows),
            int(per_tok),
            Param::I32(forms),
            int(width),
        ]);
        let grid = [blocks(emit, matrix.rows), 1, 1];
        emit.push(Self::NAME, grid, matmul::THREADS, staged_bytes(per_tok * matrix.inner, forms), params);
        Ok(())
    }
}
