//! IndexScores: what an indexer ranks cached positions by, one lane a position.

use crate::emit::{Axis, Emitter, Extent, Grid, Rows, StateBinding};
use moe_run_graph::ir::{IndexScoresAttrs, Node};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;

pub(super) fn lacking(attrs: &IndexScoresAttrs) -> Option<String> {
    let IndexScoresAttrs { num_heads: _, head_dim } = *attrs;
    (!head_dim.is_multiple_of(2)).then(|| format!("heads of {head_dim}, wanted an even number"))
}

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, attrs: &IndexScoresAttrs) -> Result<(), BackendError> {
    let state = e.state(node, node.inputs[2])?;
    let (q, w, positions) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?, e.at(node.inputs[3])?);
    let y = e.output(node.outputs[0]);
    let sizes = [("LANES", LANES), ("HEAD_DIM", attrs.head_dim as u32)];
    let variant = e.variant("index_scores", &sizes).kv(e.kv_type);
    let params = [
        ("q", q.into()),
        ("w", w.into()),
        ("positions", positions.into()),
        ("y", y.into()),
        ("heads", (attrs.num_heads as u32).into()),
    ];
    let tokens = Extent::Rows { rows: Rows { axis: Axis::Tokens, each: 1 }, times: 1, over: 1 };
    e.push(variant, Grid::new(Extent::Cached { over: LANES }, tokens, Extent::Fixed(1)), &params);
    if let Some(dispatch) = e.last() {
        dispatch.state = StateBinding::Read(vec![state]);
    }
    Ok(())
}
