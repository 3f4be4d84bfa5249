//! Attention over the cache, split over several workgroups a head where a few tokens meet a long cache.

use crate::emit::{Emitter, Extent, Grid, MAX_SPLITS, NONE, Rows, StateBinding};
use crate::params::Param;
use moe_run_graph::ir::{AttentionAttrs, Node};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 128;

/// Lanes for wide values: a lane has two elements of them.
const MAX_LANES: u32 = 256;

/// Elements of queries that a workgroup keeps in its memory.
const QUERY_ELEMS: usize = 2048;

/// The most query rows of one workgroup.
pub(crate) fn max_query_rows(attrs: &AttentionAttrs) -> usize {
    (QUERY_ELEMS / attrs.head_dim).clamp(1, 16)
}

/// What a launch that also does what goes before the attention adds to it.
pub(crate) struct Fused {
    /// The queries before norm and RoPE.
    pub q: u32,
    pub params: Vec<(&'static str, Param)>,
    pub states: StateBinding,
}

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, attrs: &AttentionAttrs) -> Result<(), BackendError> {
    emit_attention(e, node, attrs, None)
}

/// The attention over the cache, and the merging of its parts.
pub(crate) fn emit_attention(
    e: &mut Emitter<'_>,
    node: &Node,
    attrs: &AttentionAttrs,
    fused: Option<Fused>,
) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let tokens = Rows::of(e.shape(value));
    let max_tokens = tokens.count(e.plan.max_sizes);
    let group = attrs.group_size() as u32;
    let rows = max_query_rows(attrs).min(max_tokens * attrs.group_size()) as u32;
    let y = e.output(value);
    let splits = max_splits(max_tokens);
    let parts = if splits > 1 {
        e.scratch(max_tokens * attrs.num_attention_heads * splits * (attrs.value_head_dim + 2))
    } else {
        y
    };
    let sizes = [
        ("LANES", if attrs.value_head_dim > 2 * LANES as usize { MAX_LANES } else { LANES }),
        ("HEAD_DIM", attrs.head_dim as u32),
        ("VALUE_DIM", attrs.value_head_dim as u32),
        ("VALUE_STRIDE", if attrs.value_in_key { attrs.head_dim } else { attrs.value_head_dim } as u32),
        ("GROUP", group),
        ("QUERY_ROWS", rows),
    ];
    let mut variant = e.variant("attention", &sizes).kv(e.kv_type);
    let mut params = vec![
        ("positions", e.at(node.inputs[3])?.into()),
        ("y", y.into()),
        ("parts", parts.into()),
        ("num_key_value_heads", (attrs.num_key_value_heads as u32).into()),
        ("window", (attrs.window.unwrap_or(0) as u32).into()),
        ("chunk", (attrs.chunk.unwrap_or(0) as u32).into()),
        ("soft_cap", attrs.soft_cap.unwrap_or(0.0).into()),
        ("scale", attrs.scale.into()),
        ("sinks", e.small(attrs.sinks)?.into()),
        ("mask", mask(e, node, attrs, 5)?.into()),
        ("rows", e.state_rows(e.state(node, node.inputs[1])?).into()),
    ];
    let states = match fused {
        Some(fused) => {
            variant = variant.fused();
            params.push(("q", fused.q.into()));
            params.extend(fused.params);
            fused.states
        }
        None => {
            params.push(("q", e.at(node.inputs[0])?.into()));
            StateBinding::Read(vec![e.state(node, node.inputs[1])?, e.state(node, node.inputs[2])?])
        }
    };
    let x = Extent::Rows { rows: tokens, times: group, over: rows };
    e.push(variant, Grid::new(x, Extent::Fixed(attrs.num_key_value_heads as u32), Extent::Splits), &params);
    if let Some(dispatch) = e.last() {
        dispatch.state = states;
    }
    if splits > 1 {
        let variant = e.variant("attention_merge", &[("LANES", 64)]);
        let params = [
            ("parts", parts.into()),
            ("y", y.into()),
            ("heads", (attrs.num_attention_heads as u32).into()),
            ("value_dim", (attrs.value_head_dim as u32).into()),
            ("sinks", e.small(attrs.sinks)?.into()),
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

/// Where the operand lies that says which positions are seen; NONE without one.
pub(super) fn mask(
    e: &Emitter<'_>,
    node: &Node,
    attrs: &AttentionAttrs,
    at: usize,
) -> Result<u32, BackendError> {
    match node.inputs.get(at) {
        Some(mask) if attrs.masked => e.at(*mask),
        _ => Ok(NONE),
    }
}

/// Into how many parts a plan of so many tokens may split the cache: many tokens fill the device by themselves.
pub(crate) fn max_splits(max_tokens: usize) -> usize {
    if max_tokens <= crate::emit::FEW_ROWS { MAX_SPLITS } else { 1 }
}

pub(super) fn lacking(attrs: &AttentionAttrs) -> Option<String> {
    let AttentionAttrs {
        num_attention_heads: _,
        num_key_value_heads: _,
        head_dim: d,
        value_head_dim: dv,
        scale: _,
        window,
        chunk,
        soft_cap: _,
        sinks: _,
        value_in_key: _,
        masked: _,
    } = *attrs;
    if let Some(many) = window.into_iter().chain(chunk).find(|n| u32::try_from(*n).is_err()) {
        return Some(format!("a window or chunk of {many}, wanted at most {}", u32::MAX));
    }
    if d % 2 != 0 || dv % 2 != 0 || d == 0 || dv == 0 {
        return Some(format!("head sizes {d} and {dv}, wanted even numbers"));
    }
    let (most, most_values) = (QUERY_ELEMS, 2 * MAX_LANES as usize);
    (d > most || dv > most_values)
        .then(|| format!("head sizes {d} and {dv}, wanted at most {most} and {most_values}"))
}
