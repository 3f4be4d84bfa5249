//! AttentionScores, recomputed for looking at.

use crate::emit::{Axis, Emitter, Extent, Grid, Rows, StateBinding};
use moe_run_graph::ir::{AttentionAttrs, Node};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, attrs: &AttentionAttrs) -> Result<(), BackendError> {
    let state = e.state(node, node.inputs[1])?;
    let (q, positions) = (e.at(node.inputs[0])?, e.at(node.inputs[2])?);
    let y = e.output(node.outputs[0]);
    let sizes = [("LANES", LANES), ("HEAD_DIM", attrs.head_dim as u32), ("GROUP", attrs.group_size() as u32)];
    let variant = e.variant("attention_scores", &sizes).kv(e.kv_type);
    let params = [
        ("q", q.into()),
        ("positions", positions.into()),
        ("y", y.into()),
        ("num_key_value_heads", (attrs.num_key_value_heads as u32).into()),
        ("window", (attrs.window.unwrap_or(0) as u32).into()),
        ("chunk", (attrs.chunk.unwrap_or(0) as u32).into()),
        ("soft_cap", attrs.soft_cap.unwrap_or(0.0).into()),
        ("scale", attrs.scale.into()),
        ("rows", e.state_rows(state).into()),
    ];
    let tokens = Extent::Rows { rows: Rows { axis: Axis::Tokens, each: 1 }, times: 1, over: 1 };
    let heads = Extent::Fixed(attrs.num_attention_heads as u32);
    e.push(variant, Grid::new(Extent::Cached { over: LANES }, tokens, heads), &params);
    if let Some(dispatch) = e.last() {
        dispatch.state = StateBinding::Read(vec![state]);
    }
    Ok(())
}
