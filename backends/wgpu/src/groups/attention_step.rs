//! One token's Q/K norm, RoPE, KvWrite and Attention.

use super::Runs;
use crate::emit::{Emitter, NONE, StateBinding};
use crate::ops::{Fused, emit_attention, max_query_rows};
use moe_run_graph::groups::parts::{Attended, Sliced, Written};
use moe_run_graph::groups::{AttentionStep, Group, NormSpan, Placed};
use moe_run_graph::ir::{AttentionAttrs, Graph, RopePairing};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

impl Runs for AttentionStep {
    fn fits(&self, graph: &Graph, kv_type: KvType) -> bool {
        // What becomes of q, k and v is told apart by `is_part_by_heads`, `is_placed_alike`, `are_values_normed_by_head`.
        let AttentionStep { q_part: _, q: _, k: _, v_norm: _, write, attention } = self;
        let Written { node: _, k: _, v: Some(_), slots: _, key: _, value: Some(_), states: _ } = write else {
            return false;
        };
        let Attended { node: _, q: _, states: _, positions, sequence: _, attrs, y: _ } = attention;
        let AttentionAttrs {
            num_attention_heads: _,
            num_key_value_heads: _,
            head_dim,
            value_head_dim,
            scale: _,
            window: _,
            chunk: _,
            soft_cap: _,
            sinks: _,
            value_in_key: false,
            masked: false,
        } = *attrs
        else {
            return false;
        };
        // A head of the cache is whole units: of Q8_0, two blocks.
        let unit = if kv_type == KvType::Q8_0 { 64 } else { 2 };
        self.is_part_by_heads()
            && self.is_placed_alike(graph)
            && self.are_values_normed_by_head(graph)
            && attrs.group_size() <= max_query_rows(attrs)
            && head_dim.is_multiple_of(unit)
            && value_head_dim.is_multiple_of(unit)
            && graph.value(*positions).shape.0.len() == 1
    }

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        let AttentionStep { q_part, q, k, v_norm, write, attention } = self;
        let plan = e.plan;
        let defect = || BackendError::mismatch(Self::NAME);
        let (Some(v), Some(value)) = (write.v, write.value) else { return Err(defect()) };
        let attrs = &attention.attrs;
        let node = plan.graph.node(attention.node).ok_or_else(defect)?;
        let norm = |e: &Emitter<'_>, placed: &Placed| match &placed.norm {
            None => Ok((NONE, 0.0)),
            Some(norm) => e.small(norm.weight).map(|at| (at, norm.eps)),
        };
        let ((q_norm, q_eps), (k_norm, k_eps)) = (norm(e, q)?, norm(e, k)?);
        let normed = |e: &Emitter<'_>, placed: &Placed| {
            placed.norm.as_ref().and_then(|n| e.stored(n.y)).unwrap_or(NONE)
        };
        let rotated = |e: &Emitter<'_>, placed: &Placed| {
            placed.rope.as_ref().and_then(|r| e.stored(r.y)).unwrap_or(NONE)
        };
        let (pairs, angles, interleaved) = match &q.rope {
            Some(rope) => {
                let (pairs, angles) = e.angles(node, rope.table)?;
                (pairs, angles, rope.pairing == RopePairing::Interleaved)
            }
            None => (0, 0, false),
        };
        let (q_x, q_step, q_from, q_copy) = match q_part {
            Some(Sliced { node: _, x, heads, start, len: _, y }) => {
                let width = e.shape(*x).width().ok_or_else(defect)?;
                (*x, width / (*heads).max(1), *start, e.stored(*y).unwrap_or(NONE))
            }
            None => (q.x, attrs.head_dim, 0, NONE),
        };
        let v_placed = v_norm.as_ref().map_or(NONE, |norm| e.output(norm.y));
        let params = vec![
            ("q_step", (q_step as u32).into()),
            ("q_from", (q_from as u32).into()),
            ("q_copy", q_copy.into()),
            ("k", e.at(k.x)?.into()),
            ("v", e.at(v_norm.as_ref().map_or(v, |norm| norm.x))?.into()),
            ("v_norms", u32::from(v_norm.is_some()).into()),
            ("v_norm", e.small(v_norm.as_ref().and_then(|norm| norm.weight))?.into()),
            ("v_eps", v_norm.as_ref().map_or(0.0, |norm| norm.eps).into()),
            ("v_placed", v_placed.into()),
            ("slots", e.at(write.slots)?.into()),
            ("capacity", (plan.max_sizes.cached as u32).into()),
            ("q_norm", q_norm.into()),
            ("k_norm", k_norm.into()),
            ("q_eps", q_eps.into()),
            ("k_eps", k_eps.into()),
            ("table", angles.into()),
            ("pairs", pairs.into()),
            ("interleaved", u32::from(interleaved).into()),
            ("q_normed", normed(e, q).into()),
            ("k_normed", normed(e, k).into()),
            ("q_turned", rotated(e, q).into()),
            ("k_turned", rotated(e, k).into()),
            ("k_placed", e.output(k.y).into()),
            ("whole_rows", u32::from(self.norm_span() == Some(NormSpan::WholeRows)).into()),
            ("norm_last", u32::from(q.is_norm_last).into()),
        ];
        let q = e.at(q_x)?;
        let states = StateBinding::Update(vec![write.key, value]);
        emit_attention(e, node, attrs, Some(Fused { q, params, states }))
    }
}
