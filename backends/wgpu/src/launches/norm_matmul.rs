//! RmsNorm and the router's matmul; a matmul and the addition to the residual stream.

use super::{WORKGROUP_BYTES, plain_matmul, row_per_token, staged_bytes, whole_norm};
use crate::emit::{Emitter, Extent, Grid, NONE, Rows};
use moe_run_graph::ir::pattern::{named, op};
use moe_run_graph::ir::{Graph, LaunchPattern, Node, Op, ValueId};
use moe_run_runtime::error::BackendError;

const LANES: usize = 64;
/// Rows of a workgroup: the router has few.
const ROUTER_ROWS: usize = 4;
const ADD_ROWS: usize = 8;

pub(super) const NORM_ROUTER: LaunchPattern = LaunchPattern {
    name: "norm_router",
    phases: &[&[op("rms_norm"), named("matmul", "router")]],
    accepts: |graph, nodes| {
        let [norm, matmul] = nodes else { return false };
        whole_norm(norm) && matmul.inputs[0] == norm.outputs[0] && fits(graph, matmul, ROUTER_ROWS)
    },
};

pub(super) const MATMUL_ADD: LaunchPattern = LaunchPattern {
    name: "matmul_add",
    phases: &[&[op("matmul"), op("add")]],
    accepts: |graph, nodes| {
        let [matmul, add] = nodes else { return false };
        residual(matmul, add).is_some() && fits(graph, matmul, ADD_ROWS)
    },
};

fn fits(graph: &Graph, matmul: &Node, rows: usize) -> bool {
    plain_matmul(graph, matmul).is_some_and(|m| {
        m.rows % rows == 0
            && staged_bytes(m.cols) + LANES * 16 <= WORKGROUP_BYTES
            && row_per_token(graph, matmul.inputs[0])
    })
}

/// What an addition adds to the product.
fn residual(matmul: &Node, add: &Node) -> Option<ValueId> {
    let product = matmul.outputs[0];
    let other: Vec<ValueId> = add.inputs.iter().copied().filter(|v| *v != product).collect();
    (other.len() == 1).then(|| other[0])
}

pub(super) fn emit_norm_router(e: &mut Emitter<'_>, nodes: &[&Node]) -> Result<(), BackendError> {
    let defect = || BackendError::mismatch(NORM_ROUTER.name);
    let [norm, matmul] = nodes else { return Err(defect()) };
    let Op::RmsNorm { weight: Some(weight), eps, heads: 1 } = norm.op else { return Err(defect()) };
    let row = Row {
        x: e.at(norm.inputs[0])?,
        norm: e.small(Some(weight))?,
        eps,
        normed: e.stored(norm.outputs[0]).unwrap_or(NONE),
        product: NONE,
        residual: NONE,
        y: e.output(matmul.outputs[0]),
    };
    emit(e, matmul, &row, ROUTER_ROWS)
}

pub(super) fn emit_matmul_add(e: &mut Emitter<'_>, nodes: &[&Node]) -> Result<(), BackendError> {
    let defect = || BackendError::mismatch(MATMUL_ADD.name);
    let [matmul, add] = nodes else { return Err(defect()) };
    let Some(residual) = residual(matmul, add) else { return Err(defect()) };
    let row = Row {
        x: e.at(matmul.inputs[0])?,
        norm: NONE,
        eps: 0.0,
        normed: NONE,
        product: e.stored(matmul.outputs[0]).unwrap_or(NONE),
        residual: e.at(residual)?,
        y: e.output(add.outputs[0]),
    };
    emit(e, matmul, &row, ADD_ROWS)
}

/// What stands around the matmul.
struct Row {
    x: u32,
    norm: u32,
    eps: f32,
    normed: u32,
    product: u32,
    residual: u32,
    y: u32,
}

fn emit(e: &mut Emitter<'_>, matmul: &Node, row: &Row, rows_each: usize) -> Result<(), BackendError> {
    let layout = e.matrix_of(matmul)?.layout;
    let rows = e.width(matmul, matmul.outputs[0])?;
    let cols = layout.cols() as u32;
    let sizes = [("LANES", LANES as u32), ("ROWS", rows_each as u32), ("COLS", cols)];
    let input = e.input_kind(layout.format());
    let variant = e.variant("norm_matmul", &sizes).weight("weight", layout.format()).input(input);
    let params = [
        ("x", row.x.into()),
        ("norm", row.norm.into()),
        ("eps", row.eps.into()),
        ("cols", cols.into()),
        ("normed", row.normed.into()),
        ("rows", rows.into()),
        ("product", row.product.into()),
        ("residual", row.residual.into()),
        ("y", row.y.into()),
        ("weight_row_words", (layout.row_words as u32).into()),
        ("weight_blocks", (layout.blocks as u32).into()),
    ];
    let tokens = Extent::Rows { rows: Rows::of(e.shape(matmul.outputs[0])), times: 1, over: 1 };
    e.push(variant, Grid::new(Extent::Fixed(rows / rows_each as u32), tokens, Extent::Fixed(1)), &params);
    e.bind_whole(matmul)?;
    Ok(())
}
