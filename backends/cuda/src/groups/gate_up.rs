//! kernels/gate_up.cu.

use super::{
    MAX_NORM_ELEMS, Runs, any_rows, blocks, int, matmul, norm_params, normed_bytes, one_row, stage,
    whole_norm, width,
};
use crate::driver::Param;
use crate::ops::{Emit, activation_params};
use moe_run_graph::groups::parts::{Gated, Product, RowNormKind};
use moe_run_graph::groups::{GateUp, Group};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

impl Runs for GateUp {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let GateUp { norm, gate, up, act } = self;
        // `activation_params` numbers each function.
        let Gated { node: _, gate: _, up: _, activation: _, activated: _, y: _ } = act;
        let plain = |product: &Product| {
            let Product { node: _, x: _, weight, bias: None, scale: None, y: _ } = product else {
                return false;
            };
            any_rows(graph, weight)
        };
        norm.as_ref().is_none_or(|norm| whole_norm(graph, norm) && norm.kind == RowNormKind::Rms)
            && one_row(graph, gate.x)
            && width(graph, gate.x) <= MAX_NORM_ELEMS
            && width(graph, gate.x).is_multiple_of(4)
            && plain(gate)
            && plain(up)
            && width(graph, gate.y) == width(graph, up.y)
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        let GateUp { norm, gate, up, act } = self;
        let gate_matrix = emit.weights.matrix(emit.graph, &gate.weight);
        let up_matrix = emit.weights.matrix(emit.graph, &up.weight);
        let forms = stage(emit, gate_matrix.format) | stage(emit, up_matrix.format);
        let n = gate_matrix.inner;
        let (x, normed) = match norm {
            Some(norm) => (norm.x, emit.opt_value(norm.y)),
            None => (gate.x, Param::NULL),
        };
        let [weight, _, eps, _] = norm_params(emit, norm.as_ref());
        let mut params = vec![
            emit.value(x)?,
            weight,
            eps,
            normed,
            int(n),
            Param::I32(forms),
            gate_matrix.code(),
            gate_matrix.data,
            Param::U64(gate_matrix.row_bytes),
            up_matrix.code(),
            up_matrix.data,
            Param::U64(up_matrix.row_bytes),
        ];
        params.extend(activation_params(Some(act.activation)));
        params.extend([
            emit.opt_value(gate.y),
            emit.opt_value(up.y),
            emit.opt_value(act.activated),
            emit.value(act.y)?,
            int(gate_matrix.rows),
        ]);
        let shared = normed_bytes(n, forms);
        let grid = [blocks(emit, Self::NAME, gate_matrix.rows, shared)?, 1, 1];
        emit.push(Self::NAME, grid, matmul::THREADS, shared, params);
        Ok(())
    }
}
