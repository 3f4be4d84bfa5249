//! The down matmul of the chosen experts, their weighted sum, and the addition to the residual stream.

use super::{WORKGROUP_BYTES, plain_experts, staged_bytes};
use crate::emit::{Emitter, Extent, Grid, NONE, Rows};
use moe_run_graph::ir::pattern::op;
use moe_run_graph::ir::{Graph, LaunchPattern, Node, ValueId};
use moe_run_runtime::error::BackendError;

const ROWS: usize = 8;

/// Lanes by the activations that they share the workgroup's memory with.
fn lanes(elems: usize) -> Option<usize> {
    // Two sums of four f32 for every lane.
    [128, 64].into_iter().find(|lanes| staged_bytes(elems) + lanes * 32 <= WORKGROUP_BYTES)
}

pub(super) const PATTERN: LaunchPattern = LaunchPattern {
    name: "combine_experts",
    phases: &[&[op("expert_matmul"), op("expert_combine"), op("add")]],
    accepts,
};

fn residual(combine: &Node, add: &Node) -> Option<ValueId> {
    let other: Vec<ValueId> = add.inputs.iter().copied().filter(|v| *v != combine.outputs[0]).collect();
    (other.len() == 1).then(|| other[0])
}

fn accepts(graph: &Graph, nodes: &[&Node]) -> bool {
    let [down, combine, add] = nodes else { return false };
    let Some(matrix) = plain_experts(graph, down) else { return false };
    let chosen = graph.value(combine.inputs[1]).shape.width().unwrap_or(usize::MAX);
    graph.value(down.inputs[0]).shape.0.len() == 3
        && combine.inputs[0] == down.outputs[0]
        && residual(combine, add).is_some()
        && matrix.rows % ROWS == 0
        && matrix.cols % 16 == 0
        && chosen <= 64
        && lanes(chosen * matrix.cols).is_some_and(|lanes| lanes >= chosen.next_power_of_two())
}

pub(super) fn emit(e: &mut Emitter<'_>, nodes: &[&Node]) -> Result<(), BackendError> {
    let defect = || BackendError::mismatch(PATTERN.name);
    let [down, combine, add] = nodes else { return Err(defect()) };
    let layout = e.matrix_of(down)?.layout;
    let chosen = e.width(combine, combine.inputs[1])?;
    let elems = chosen as usize * layout.cols();
    let (Some(residual), Some(lanes)) = (residual(combine, add), lanes(elems)) else { return Err(defect()) };
    let slice = down.op.weight_slice().ok_or_else(defect)?;
    let experts = e.plan.graph.weight(slice.tensor).shape[0];
    let rows = e.width(down, down.outputs[0])?;
    let sizes = [
        ("LANES", lanes as u32),
        ("ROWS", ROWS as u32),
        ("COLS", (elems as u32).next_multiple_of(32)),
        ("EXPERT_SLOTS", chosen.next_power_of_two()),
    ];
    let input = e.input_kind(layout.format());
    let variant = e.variant("combine_experts", &sizes).weight("weight", layout.format()).input(input);
    let stored = |e: &Emitter<'_>, value| e.stored(value).unwrap_or(NONE);
    let params = [
        ("x", e.at(down.inputs[0])?.into()),
        ("ids", e.at(down.inputs[1])?.into()),
        ("weights", e.at(combine.inputs[1])?.into()),
        ("residual", e.at(residual)?.into()),
        ("y", e.output(add.outputs[0]).into()),
        ("expert_y", stored(e, down.outputs[0]).into()),
        ("combined", stored(e, combine.outputs[0]).into()),
        ("cols", (layout.cols() as u32).into()),
        ("rows", rows.into()),
        ("num_experts", (experts as u32).into()),
        ("experts_per_token", chosen.into()),
        ("weight_row_words", (layout.row_words as u32).into()),
        ("weight_blocks", (layout.blocks as u32).into()),
    ];
    let tokens = Extent::Rows { rows: Rows::of(e.shape(add.outputs[0])), times: 1, over: 1 };
    e.push(variant, Grid::new(Extent::Fixed(rows / ROWS as u32), tokens, Extent::Fixed(1)), &params);
    e.bind_whole(down)?;
    Ok(())
}
