//! RmsNorm and the matmuls of q, k and v.

use super::{Matrix, WORKGROUP_BYTES, plain_matmul, row_per_token, staged_bytes, whole_norm};
use crate::emit::{Emitter, Extent, Grid, NONE, Rows};
use moe_run_graph::ir::pattern::{named, op};
use moe_run_graph::ir::{Graph, LaunchPattern, Node, Op};
use moe_run_runtime::error::BackendError;

const LANES: usize = 128;
const ROWS: usize = 16;

pub(super) const PATTERN: LaunchPattern = LaunchPattern {
    name: "norm_qkv",
    phases: &[&[
        op("rms_norm"),
        named("matmul", "q_proj"),
        named("matmul", "k_proj"),
        named("matmul", "v_proj"),
    ]],
    accepts,
};

fn accepts(graph: &Graph, nodes: &[&Node]) -> bool {
    let [norm, projections @ ..] = nodes else { return false };
    let matrices: Option<Vec<Matrix>> = projections.iter().map(|n| plain_matmul(graph, n)).collect();
    let Some(matrices) = matrices else { return false };
    let one_kind = |m: &Matrix| m.format.is_quantized() == matrices[0].format.is_quantized();
    whole_norm(norm)
        && row_per_token(graph, norm.inputs[0])
        && projections.iter().all(|n| n.inputs[0] == norm.outputs[0])
        && matrices.iter().all(|m| m.rows % ROWS == 0 && one_kind(m))
        && staged_bytes(matrices[0].cols) + LANES * 16 <= WORKGROUP_BYTES
}

pub(super) fn emit(e: &mut Emitter<'_>, nodes: &[&Node]) -> Result<(), BackendError> {
    let defect = || BackendError::mismatch(PATTERN.name);
    let [norm, q, k, v] = nodes else { return Err(defect()) };
    let Op::RmsNorm { weight: Some(weight), eps, heads: 1 } = norm.op else { return Err(defect()) };
    let tensors = [e.matrix_of(q)?, e.matrix_of(k)?, e.matrix_of(v)?];
    let rows = [e.width(q, q.outputs[0])?, e.width(k, k.outputs[0])?, e.width(v, v.outputs[0])?];
    let layouts = tensors.map(|t| t.layout);
    let cols = layouts[0].cols() as u32;
    let sizes = [("LANES", LANES as u32), ("ROWS", ROWS as u32), ("COLS", cols)];
    let variant = e
        .variant("norm_qkv", &sizes)
        .weight("query", layouts[0].format())
        .weight("key", layouts[1].format())
        .weight("value", layouts[2].format())
        .input(e.input_kind(layouts[0].format()));
    let x = e.at(norm.inputs[0])?;
    let params = [
        ("x", x.into()),
        ("norm", e.small(Some(weight))?.into()),
        ("eps", eps.into()),
        ("cols", cols.into()),
        ("normed", e.stored(norm.outputs[0]).unwrap_or(NONE).into()),
        ("query_y", e.output(q.outputs[0]).into()),
        ("key_y", e.output(k.outputs[0]).into()),
        ("value_y", e.output(v.outputs[0]).into()),
        ("query_rows", rows[0].into()),
        ("key_rows", rows[1].into()),
        ("value_rows", rows[2].into()),
        ("query_row_words", (layouts[0].row_words as u32).into()),
        ("query_blocks", (layouts[0].blocks as u32).into()),
        ("key_row_words", (layouts[1].row_words as u32).into()),
        ("key_blocks", (layouts[1].blocks as u32).into()),
        ("value_row_words", (layouts[2].row_words as u32).into()),
        ("value_blocks", (layouts[2].blocks as u32).into()),
    ];
    let tokens = Extent::Rows { rows: Rows::of(e.shape(norm.outputs[0])), times: 1, over: 1 };
    let groups = Extent::Fixed(rows.iter().sum::<u32>() / ROWS as u32);
    e.push(variant, Grid::new(groups, tokens, Extent::Fixed(1)), &params);
    for node in [q, k, v] {
        e.bind_whole(node)?;
    }
    Ok(())
}
