//! kernels/gated_matmul.cu.

use super::{
    MAX_NORM_ELEMS, Runs, any_rows, blocks, int, matmul, one_row, part_params, stage, staged_bytes, width,
};
use crate::driver::Param;
use crate::ops::{Emit, activation_params, rms_norm};
use moe_run_graph::groups::parts::{Gated, HeadsScaled, Norm, Product, Sliced, Sum};
use moe_run_graph::groups::{GatedMatMul, Group, RowGate};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

/// `NormPlace` in the kernel.
fn norm_place(group: &GatedMatMul) -> i32 {
    match (&group.norm, group.is_norm_last) {
        (None, _) => 0,
        (Some(_), false) => 1,
        (Some(_), true) => 2,
    }
}

impl Runs for GatedMatMul {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let GatedMatMul { gate_part, gate, norm, is_norm_last: _, product, add } = self;
        let Product { node: _, x, weight, bias: _, scale: _, y: _ } = product;
        // `activation_params` numbers each function.
        let same_width = match gate {
            RowGate::Elements(Gated { node: _, gate, up, activation: _, activated: _, y: _ }) => {
                width(graph, *gate) == width(graph, *up)
            }
            RowGate::Heads {
                act: Gated { node: _, gate: _, up: _, activation: _, activated: _, y: _ },
                scaled: HeadsScaled { node: _, x: _, factors: _, y: _ },
            } => true,
        };
        let norms = |norm: &Norm| {
            let Norm { node: _, x: _, weight: _, eps: _, heads: _, y: _ } = norm;
        };
        norm.iter().for_each(norms);
        gate_part.iter().for_each(|Sliced { node: _, x: _, heads: _, start: _, len: _, y: _ }| {});
        add.iter().for_each(|Sum { node: _, other: _, y: _ }| {});
        any_rows(graph, weight)
            && same_width
            && one_row(graph, *x)
            && width(graph, *x) <= MAX_NORM_ELEMS
            && width(graph, *x).is_multiple_of(4)
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        let GatedMatMul { gate_part, gate, norm, is_norm_last, product, add } = self;
        let matrix = emit.weights.matrix(emit.graph, &product.weight);
        let forms = stage(emit, matrix.format);
        let n = matrix.inner;
        let (act, gate_width) = match gate {
            RowGate::Elements(act) => (act, 0),
            RowGate::Heads { act, scaled } => (act, n / emit.width(scaled.factors)?.max(1)),
        };
        let x = norm.as_ref().filter(|_| !is_norm_last).map_or(gate.x(), |norm| norm.x);
        let mut params = vec![emit.value(x)?];
        params.extend(part_params(emit, gate_part.as_ref(), act.gate)?);
        params.push(int(gate_width));
        params.extend(activation_params(Some(act.activation)));
        params.extend([
            emit.opt_value(act.activated),
            emit.opt_value(gate.y()),
            Param::I32(norm_place(self)),
        ]);
        params.extend(match norm {
            Some(norm) => [
                emit.weights.opt_vector(norm.weight),
                Param::F32(norm.eps),
                int(norm.heads),
                int(rms_norm::weight_parts(emit, norm.weight, n / norm.heads.max(1))),
                emit.opt_value(norm.y),
            ],
            None => [Param::NULL, Param::F32(0.0), int(1), int(1), Param::NULL],
        });
        params.extend([
            matrix.code(),
            matrix.data,
            Param::U64(matrix.row_bytes),
            emit.weights.opt_vector(product.bias),
            Param::F32(product.scale.unwrap_or(1.0)),
        ]);
        // What the addition makes is the result; what comes before it is written if somebody reads it.
        params.extend(match add {
            Some(add) => [emit.value(add.other)?, emit.opt_value(product.y), emit.value(add.y)?],
            None => [Param::NULL, Param::NULL, emit.value(product.y)?],
        });
        params.extend([int(n), int(matrix.rows), Param::I32(forms)]);
        let shared = 4 * n + staged_bytes(n, forms);
        let grid = [blocks(emit, Self::NAME, matrix.rows, shared)?, 1, 1];
        emit.push(Self::NAME, grid, matmul::THREADS, shared, params);
        Ok(())
    }
}
