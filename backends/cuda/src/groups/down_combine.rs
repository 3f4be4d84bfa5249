//! kernels/down_combine.cu.

use super::{
    MAX_STAGED_ELEMS, Runs, any_experts, any_rows, blocks, int, matmul, one_row, stage, staged_bytes, width,
};
use crate::driver::Param;
use crate::ops::Emit;
use moe_run_graph::groups::parts::{Combined, Product, Scaled, Sum};
use moe_run_graph::groups::{DownCombine, Group, SharedExpert, SharedGate, Sums};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

/// Lanes that take one expert's row of so many elements: 8 read a 256-block's chunks together; a warp has four experts under way
/// then.
pub(crate) fn down_lanes(inner: usize, per_tok: usize) -> usize {
    match inner {
        0..=1024 if per_tok > 2 => 8,
        0..=2048 if per_tok > 1 => 16,
        _ => 32,
    }
}

impl Runs for DownCombine {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let DownCombine { down, combined: Combined { node: _, x: _, weights: _, y: _ }, shared, add } = self;
        let routed = graph.value(down.x).shape.fixed_elems();
        let sums = |shared: &SharedExpert| {
            let SharedExpert { down, x, gate, add: Sum { node: _, other: _, y: _ }, scaled } = shared;
            let has_room = |down: &Product| {
                let Product { node: _, x, weight, bias: None, scale: _, y: _ } = down else { return false };
                any_rows(graph, weight)
                    && one_row(graph, *x)
                    && width(graph, *x).saturating_add(routed) <= MAX_STAGED_ELEMS
            };
            scaled.iter().for_each(|Scaled { node: _, x: _, factor: _, y: _ }| {});
            one_row(graph, *x)
                && gate.as_ref().is_none_or(SharedGate::is_sigmoid)
                && down.as_ref().is_none_or(has_room)
        };
        any_experts(graph, down)
            && graph.value(down.x).shape.0.len() == 3
            && routed <= MAX_STAGED_ELEMS
            && shared.as_ref().is_none_or(sums)
            && add.as_ref().is_none_or(|Sum { node: _, other: _, y: _ }| true)
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        let DownCombine { down, combined, shared, add } = self;
        let matrix = emit.weights.matrix(emit.graph, &down.weight);
        let per_tok = emit.elems(down.ids);
        let forms = stage(emit, matrix.format);
        let lanes = down_lanes(matrix.inner, per_tok);
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
        ];
        let shared_down = shared.as_ref().and_then(|shared| shared.down.as_ref());
        let mut staged = staged_bytes(per_tok * matrix.inner, forms);
        match shared_down {
            Some(down) => {
                let matrix = emit.weights.matrix(emit.graph, &down.weight);
                let forms = stage(emit, matrix.format);
                staged += staged_bytes(matrix.inner, forms);
                params.extend([
                    emit.value(down.x)?,
                    matrix.code(),
                    matrix.data,
                    Param::U64(matrix.row_bytes),
                    Param::F32(down.scale.unwrap_or(1.0)),
                    int(matrix.inner),
                    Param::I32(forms),
                    emit.opt_value(down.y),
                ]);
            }
            None => params.extend([
                shared.as_ref().map_or(Ok(Param::NULL), |shared| emit.value(shared.x))?,
                int(0),
                Param::NULL,
                Param::U64(0),
                Param::F32(1.0),
                int(0),
                int(0),
                Param::NULL,
            ]),
        }
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
        // What comes before the last sum is written if somebody reads it.
        let scaled = shared.as_ref().and_then(|shared| shared.scaled.as_ref());
        let Sums { y, routed, with_shared, mean } = self.sums();
        let [sum, with_shared, mean] =
            [routed, with_shared, mean].map(|value| value.map_or(Param::NULL, |value| emit.opt_value(value)));
        params.extend([
            with_shared,
            Param::F32(scaled.map_or(1.0, |scaled| scaled.factor)),
            mean,
            add.as_ref().map_or(Ok(Param::NULL), |add| emit.value(add.other))?,
            emit.opt_value(down.y),
            sum,
            emit.value(y)?,
            int(matrix.inner),
            int(matrix.rows),
            int(per_tok),
            Param::I32(forms),
            int(lanes),
        ]);
        let grid = [blocks(emit, Self::NAME, matrix.rows, staged)?, 1, 1];
        emit.push(Self::NAME, grid, matmul::THREADS, staged, params);
        Ok(())
    }
}
