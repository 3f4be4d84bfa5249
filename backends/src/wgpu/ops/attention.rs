//! Attention over the cache, split over several workgroups a head where a few tokens meet a long cache.

use crate::error::BackendError;
use crate::wgpu::emit::{Emitter, Extent, Grid, MAX_SPLITS, Rows, StateBinding};
use moe_run_graph::ir::{AttentionAttrs, Node};

const LANES: u32 = 128;

/// Elements of queries that a workgroup keeps in its memory.
const QUERY_ELEMS: usize = 2048;

/// Query rows of one workgroup.
fn query_rows(attrs: &AttentionAttrs, rows: usize) -> usize {
    (QUERY_ELEMS / attrs.head_dim).clamp(1, 16).min(rows)
}

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, attrs: &AttentionAttrs) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let tokens = Rows::of(e.shape(value));
    let max_tokens = tokens.count(e.plan.max_sizes);
    let group = attrs.group_size() as u32;
    let rows = query_rows(attrs, max_tokens * attrs.group_size()) as u32;
    let (q, positions) = (e.at(node.inputs[0])?, e.at(node.inputs[3])?);
    let y = e.output(value);
    let splits = max_splits(max_tokens);
    let parts = if splits > 1 {
        e.scratch(max_tokens * attrs.num_attention_heads * splits * (attrs.value_head_dim + 2))
    } else {
        y
    };
    let states = vec![e.state(node, node.inputs[1])?, e.state(node, node.inputs[2])?];
    let sizes = [
        ("LANES", LANES),
        ("HEAD_DIM", attrs.head_dim as u32),
        ("VALUE_DIM", attrs.value_head_dim as u32),
        ("GROUP", group),
        ("QUERY_ROWS", rows),
    ];
    let variant = e.variant("attention", &sizes).kv(e.kv_type);
    let params = [
        ("q", q.into()),
        ("positions", positions.into()),
        ("y", y.into()),
        ("parts", parts.into()),
        ("num_key_value_heads", (attrs.num_key_value_heads as u32).into()),
        ("window", (attrs.window.unwrap_or(0) as u32).into()),
        ("soft_cap", attrs.soft_cap.unwrap_or(0.0).into()),
        ("scale", attrs.scale.into()),
        ("sinks", e.small(attrs.sinks).into()),
    ];
    let x = Extent::Rows { rows: tokens, times: group, over: rows };
    e.push(variant, Grid::new(x, Extent::Fixed(attrs.num_key_value_heads as u32), Extent::Splits), &params);
    if let Some(dispatch) = e.last() {
        dispatch.state = StateBinding::Read(states);
    }
    if splits > 1 {
        let variant = e.variant("attention_merge", &[("LANES", 64)]);
        let params = [
            ("parts", parts.into()),
            ("y", y.into()),
            ("heads", (attrs.num_attention_heads as u32).into()),
            ("value_dim", (attrs.value_head_dim as u32).into()),
            ("sinks", e.small(attrs.sinks).into()),
        ];
        let tokens = Extent::Rows { rows: tokens, times: 1, over: 1 };
        let grid = Grid::new(Extent::Fixed(attrs.num_attention_heads as u32), tokens, Extent::Fixed(1));
        e.push(variant, grid, &params);
        if let Some(dispatch) = e.last() {
            dispatch.when_split = true;
        }
    }
    Ok(())
}

/// Into how many parts a plan of so many tokens may split the cache: many tokens fill the device by themselves.
pub(in crate::wgpu) fn max_splits(max_tokens: usize) -> usize {
    if max_tokens <= crate::wgpu::emit::FEW_ROWS { MAX_SPLITS } else { 1 }
}

pub(super) fn lacking(attrs: &AttentionAttrs) -> Option<String> {
    let (d, dv) = (attrs.head_dim, attrs.value_head_dim);
    if d % 2 != 0 || dv % 2 != 0 || d == 0 || dv == 0 {
        return Some(format!("head sizes {d} and {dv}, wanted even numbers"));
    }
    let (most, most_values) = (QUERY_ELEMS, 2 * LANES as usize);
    (d > most || dv > most_values)
        .then(|| format!("head sizes {d} and {dv}, wanted at most {most} and {most_values}"))
}
