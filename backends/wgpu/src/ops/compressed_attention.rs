//! CompressedAttention: a window's keys and the entries of what lies before, one workgroup a token and head.

use crate::emit::{Emitter, Extent, Grid, NONE, Rows, StateBinding};
use moe_run_graph::ir::{CompressedAttentionAttrs, Node};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;

/// Elements of a head, at most: the query stands in workgroup memory.
const MAX_HEAD_DIM: usize = 2048;

pub(super) fn lacking(attrs: &CompressedAttentionAttrs) -> Option<String> {
    let CompressedAttentionAttrs {
        num_attention_heads: _,
        head_dim,
        scale: _,
        window,
        ratio,
        sinks: _,
        masked: _,
    } = *attrs;
    if u32::try_from(window.max(ratio)).is_err() {
        return Some(format!("a window of {window} and a ratio of {ratio}, wanted at most {}", u32::MAX));
    }
    (!head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM)
        .then(|| format!("heads of {head_dim}, wanted an even number, at most {MAX_HEAD_DIM}"))
}

pub(super) fn emit(
    e: &mut Emitter<'_>,
    node: &Node,
    attrs: &CompressedAttentionAttrs,
) -> Result<(), BackendError> {
    let states = vec![e.state(node, node.inputs[1])?, e.state(node, node.inputs[2])?];
    let (q, positions) = (e.at(node.inputs[0])?, e.at(node.inputs[3])?);
    let mask = match node.inputs.get(5) {
        Some(mask) if attrs.masked => e.at(*mask)?,
        _ => NONE,
    };
    let y = e.output(node.outputs[0]);
    let sizes = [("LANES", LANES), ("HEAD_DIM", attrs.head_dim as u32)];
    let variant = e.variant("compressed_attention", &sizes).kv(e.kv_type);
    let params = [
        ("q", q.into()),
        ("positions", positions.into()),
        ("y", y.into()),
        ("heads", (attrs.num_attention_heads as u32).into()),
        ("window", (attrs.window as u32).into()),
        ("ratio", (attrs.ratio as u32).into()),
        ("scale", attrs.scale.into()),
        ("sinks", e.small(attrs.sinks)?.into()),
        ("mask", mask.into()),
    ];
    let tokens = Extent::Rows { rows: Rows::of(e.shape(node.outputs[0])), times: 1, over: 1 };
    let heads = Extent::Fixed(attrs.num_attention_heads as u32);
    e.push(variant, Grid::new(tokens, heads, Extent::Fixed(1)), &params);
    if let Some(dispatch) = e.last() {
        dispatch.state = StateBinding::Read(states);
    }
    Ok(())
}
