//! kernels/route_gate_up.cu.

use super::{
    MAX_STAGED_ELEMS, Runs, any_experts, blocks, int, matmul, one_row, ops, stage, staged_bytes, width,
};
use crate::driver::Param;
use crate::ops::{Emit, activation_params, router};
use moe_run_graph::groups::parts::{Gated, Routing};
use moe_run_graph::groups::{ExpertsGateUp, Group, RouteGateUp};
use moe_run_graph::ir::{Graph, Op, RouterAttrs, ValueId};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

impl Runs for RouteGateUp {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let RouteGateUp { routing, experts: ExpertsGateUp { gate, up, act } } = self;
        let Routing { node, logits: _, attrs, ids: _, weights: _ } = routing;
        // `activation_params` numbers each function.
        let Gated { node: _, gate: _, up: _, activation: _, activated: _, y: _ } = act;
        // Every attribute of the choice goes with the launch.
        let RouterAttrs {
            num_experts: _,
            num_experts_per_tok: _,
            gate: _,
            norm_topk_prob: _,
            scale: _,
            selection_bias: _,
            groups: _,
            expert_scale: _,
        } = attrs;
        graph.node(*node).is_some_and(|router| ops::supports(graph, router).is_ok())
            && any_experts(graph, gate)
            && any_experts(graph, up)
            && one_row(graph, gate.x)
            && width(graph, gate.x) <= MAX_STAGED_ELEMS
            && width(graph, gate.y) == width(graph, up.y)
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        let RouteGateUp { routing, experts: ExpertsGateUp { gate, up, act } } = self;
        let r = &routing.attrs;
        let gate_matrix = emit.weights.matrix(emit.graph, &gate.weight);
        let up_matrix = emit.weights.matrix(emit.graph, &up.weight);
        let forms = stage(emit, gate_matrix.format) | stage(emit, up_matrix.format);
        let [n_group, topk_group, best_two] = router::group_params(r);
        let (next, next_bytes) = next_experts(emit, act.y);
        let mut params = vec![
            emit.value(routing.logits)?,
            emit.weights.opt_vector(r.selection_bias),
            emit.value(routing.ids)?,
            emit.value(routing.weights)?,
            int(r.num_experts),
            int(r.num_experts_per_tok),
            router::gate_code(r.gate),
            int(usize::from(r.norm_topk_prob)),
            Param::F32(r.scale),
            emit.weights.opt_vector(r.expert_scale),
            int(n_group),
            int(topk_group),
            int(best_two),
            emit.value(gate.x)?,
            int(gate_matrix.inner),
            int(gate_matrix.rows),
            Param::I32(forms),
            gate_matrix.code(),
            gate_matrix.data,
            Param::U64(gate_matrix.row_bytes),
            Param::U64(gate_matrix.expert_bytes),
            up_matrix.code(),
            up_matrix.data,
            Param::U64(up_matrix.row_bytes),
            Param::U64(up_matrix.expert_bytes),
            emit.weights.opt_vector(gate.bias),
            emit.weights.opt_vector(up.bias),
        ];
        params.extend(activation_params(Some(act.activation)));
        params.extend([
            emit.opt_value(gate.y),
            emit.opt_value(up.y),
            emit.opt_value(act.activated),
            emit.value(act.y)?,
            next,
            Param::U64(next_bytes),
        ]);
        let shared = staged_bytes(gate_matrix.inner, forms);
        let rows = r.num_experts_per_tok * gate_matrix.rows;
        let grid = [blocks(emit, Self::NAME, rows, shared)?, 1, 1];
        emit.push(Self::NAME, grid, matmul::THREADS, shared, params);
        Ok(())
    }
}

/// The expert matrix that reads a value next, and the bytes of one of its experts: its weights are fetched ahead.
fn next_experts(emit: &Emit<'_>, value: ValueId) -> (Param, u64) {
    let next = emit.graph.nodes.iter().find_map(|n| {
        let Op::ExpertMatMul { weight, bias: _ } = &n.op else { return None };
        (n.inputs[0] == value).then_some(weight)
    });
    next.map_or((Param::NULL, 0), |weight| {
        let matrix = emit.weights.matrix(emit.graph, weight);
        (matrix.data, matrix.expert_bytes)
    })
}
