//! Router, the gate and up matmuls of the chosen experts, and the activation of both.

use super::{Matrix, Runs, WORKGROUP_BYTES, experts, gated_params, row_per_token, staged_bytes};
use crate::emit::{Emitter, Extent, Grid, Rows};
use crate::ops::{choice_params, group_codes};
use moe_run_graph::groups::parts::{Gated, Routing};
use moe_run_graph::groups::{ExpertsGateUp, Group, RouteGateUp};
use moe_run_graph::ir::{Graph, RouterAttrs};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

const LANES: usize = 128;
const ROWS: u32 = 16;

/// The two matrices.
fn matrices(graph: &Graph, group: &ExpertsGateUp) -> Option<[Matrix; 2]> {
    let ExpertsGateUp { gate, up, act: _ } = group;
    Some([experts(graph, gate)?, experts(graph, up)?])
}

impl Runs for RouteGateUp {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let RouteGateUp { routing, experts } = self;
        let Routing { node: _, logits: _, attrs, ids: _, weights: _ } = routing;
        // `activation_params` numbers each function.
        let Gated { node: _, gate: _, up: _, activation: _, activated: _, y: _ } = &experts.act;
        // Every other attribute of the choice goes with the launch.
        let RouterAttrs {
            num_experts,
            num_experts_per_tok: _,
            gate: _,
            norm_topk_prob: _,
            scale: _,
            selection_bias: _,
            groups: _,
            expert_scale: _,
        } = attrs;
        let Some([g, u]) = matrices(graph, experts) else { return false };
        // Keys, gates, ids and weights of every expert; sums and maxima of every lane.
        let memory = staged_bytes(g.cols) + num_experts * 16 + LANES * 20;
        row_per_token(graph, experts.gate.x)
            && (g.rows, g.cols) == (u.rows, u.cols)
            && g.format.is_quantized() == u.format.is_quantized()
            && memory <= WORKGROUP_BYTES
    }

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        let RouteGateUp { routing, experts } = self;
        let ExpertsGateUp { gate, up, act } = experts;
        let attrs = &routing.attrs;
        let defect = || BackendError::mismatch(Self::NAME);
        let [g, u] = matrices(&e.plan.graph, experts).ok_or_else(defect)?;
        let (rows, cols) = (g.rows as u32, g.cols as u32);
        let [groups, ..] = group_codes(attrs);
        let sizes = [
            ("LANES", LANES as u32),
            ("ROWS", ROWS),
            ("COLS", cols),
            ("KEYS", attrs.num_experts as u32),
            ("GROUPS", groups),
        ];
        let variant = e.variant(Self::NAME, &sizes).weight("gate", g.format).weight("up", u.format);
        let variant = variant.input(e.input_kind(g.format));
        let mut params = vec![
            ("logits", e.at(routing.logits)?.into()),
            ("ids", e.output(routing.ids).into()),
            ("weights", e.output(routing.weights).into()),
            ("x", e.at(gate.x)?.into()),
            ("cols", cols.into()),
            ("gate_expert_rows", (g.expert_rows as u32).into()),
            ("up_expert_rows", (u.expert_rows as u32).into()),
            ("gate_bias", e.small(gate.bias)?.into()),
            ("up_bias", e.small(up.bias)?.into()),
        ];
        params.extend(gated_params(e, [(&g, &gate.weight, gate.y), (&u, &up.weight, up.y)], act)?);
        params.extend(choice_params(e, attrs)?);
        params.push(("expert_scale", e.small(attrs.expert_scale)?.into()));
        let tokens = Extent::Rows { rows: Rows::of(e.shape(routing.ids)), times: 1, over: 1 };
        let choices = Extent::Fixed(attrs.num_experts_per_tok as u32);
        e.push(variant, Grid::new(Extent::Fixed(rows.div_ceil(ROWS)), choices, tokens), &params);
        e.bind_part(&gate.weight, 0);
        e.bind_part(&up.weight, 0);
        Ok(())
    }
}
