//! Router, the gate and up matmuls of the chosen experts, and SwiGLU.

use super::{WORKGROUP_BYTES, plain_experts, staged_bytes};
use crate::emit::{Emitter, Extent, Grid, NONE, Rows};
use crate::ops::{choice_params, group_codes};
use moe_run_graph::ir::pattern::{named, op};
use moe_run_graph::ir::{ActivationFn, Graph, LaunchPattern, Node, Op, RouterAttrs};
use moe_run_runtime::error::BackendError;

const LANES: usize = 128;
const ROWS: usize = 16;

pub(super) const PATTERN: LaunchPattern = LaunchPattern {
    name: "route_experts",
    phases: &[&[
        op("router"),
        named("expert_matmul", "gate_proj"),
        named("expert_matmul", "up_proj"),
        op("gated_act"),
    ]],
    accepts,
};

fn accepts(graph: &Graph, nodes: &[&Node]) -> bool {
    let [router, gate, up, act] = nodes else { return false };
    let Op::Router(attrs) = &router.op else { return false };
    // Every other attribute of the choice goes with the launch.
    let RouterAttrs {
        num_experts,
        num_experts_per_tok: _,
        gate: _,
        norm_topk_prob: _,
        scale: _,
        selection_bias: _,
        groups: _,
        expert_scale: None,
    } = *attrs
    else {
        return false;
    };
    let (Some(g), Some(u)) = (plain_experts(graph, gate), plain_experts(graph, up)) else { return false };
    let ids = router.outputs[0];
    // Keys, gates, ids and weights of every expert; sums and maxima of every lane.
    let memory = staged_bytes(g.cols) + num_experts * 16 + LANES * 20;
    graph.value(gate.inputs[0]).shape.0.len() == 2
        && [gate, up].iter().all(|n| n.inputs[1] == ids && n.inputs[0] == gate.inputs[0])
        && act.inputs == [gate.outputs[0], up.outputs[0]]
        && matches!(act.op, Op::GatedAct { activation: ActivationFn::Silu })
        && (g.rows, g.cols) == (u.rows, u.cols)
        && g.rows % ROWS == 0
        && g.format.is_quantized() == u.format.is_quantized()
        && memory <= WORKGROUP_BYTES
}

pub(super) fn emit(e: &mut Emitter<'_>, nodes: &[&Node]) -> Result<(), BackendError> {
    let defect = || BackendError::mismatch(PATTERN.name);
    let [router, gate, up, act] = nodes else { return Err(defect()) };
    let (Op::Router(attrs), Op::GatedAct { activation: ActivationFn::Silu }) = (&router.op, &act.op) else {
        return Err(defect());
    };
    let (g, u) = (e.matrix_of(gate)?.layout, e.matrix_of(up)?.layout);
    let cols = g.cols() as u32;
    let rows = e.width(gate, gate.outputs[0])?;
    let [groups, ..] = group_codes(attrs);
    let sizes = [
        ("LANES", LANES as u32),
        ("ROWS", ROWS as u32),
        ("COLS", cols),
        ("KEYS", attrs.num_experts as u32),
        ("GROUPS", groups),
    ];
    let variant = e
        .variant("route_experts", &sizes)
        .weight("gate", g.format())
        .weight("up", u.format())
        .input(e.input_kind(g.format()));
    let stored = |e: &Emitter<'_>, value| e.stored(value).unwrap_or(NONE);
    let mut params = vec![
        ("logits", e.at(router.inputs[0])?.into()),
        ("ids", e.output(router.outputs[0]).into()),
        ("weights", e.output(router.outputs[1]).into()),
        ("x", e.at(gate.inputs[0])?.into()),
        ("cols", cols.into()),
        ("rows", rows.into()),
        ("gate_y", stored(e, gate.outputs[0]).into()),
        ("up_y", stored(e, up.outputs[0]).into()),
        ("activated", stored(e, act.outputs[0]).into()),
        ("y", e.output(act.outputs[1]).into()),
        ("gate_row_words", (g.row_words as u32).into()),
        ("gate_blocks", (g.blocks as u32).into()),
        ("up_row_words", (u.row_words as u32).into()),
        ("up_blocks", (u.blocks as u32).into()),
    ];
    params.extend(choice_params(e, attrs)?);
    let tokens = Extent::Rows { rows: Rows::of(e.shape(router.outputs[0])), times: 1, over: 1 };
    let choices = Extent::Fixed(attrs.num_experts_per_tok as u32);
    e.push(variant, Grid::new(Extent::Fixed(rows / ROWS as u32), choices, tokens), &params);
    e.bind_whole(gate)?;
    e.bind_whole(up)?;
    Ok(())
}
