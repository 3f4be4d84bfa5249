//! `attention_step`: Q/K norm, RoPE, KvWrite and Attention, of queries that may lie beside something else.

use super::parts::{Attended, Norm, Rotated, Sliced, Written};
use super::{Group, Matcher};
use crate::ir::{Graph, Node, NodeId, ValueId};

/// What queries or keys go through between their matmul and where they are used: norm and rotation, either, or none.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// As the matmul made them.
    pub x: ValueId,
    /// The norm.
    pub norm: Option<Norm>,
    /// The rotation.
    pub rope: Option<Rotated>,
    /// The norm stands behind the rotation.
    pub is_norm_last: bool,
    /// As they are used.
    pub y: ValueId,
}

impl Placed {
    /// What leads to a value.
    pub(super) fn up_to(matcher: &Matcher<'_>, y: ValueId) -> Placed {
        let (mut x, mut norm, mut rope) = (y, None, None);
        let mut is_norm_last = false;
        while let Some(node) = matcher.producer(x) {
            if let Some(found) = Norm::of(node).filter(|_| norm.is_none()) {
                (x, norm) = (found.x, Some(found));
            } else if let Some(found) = Rotated::of(node).filter(|_| rope.is_none()) {
                is_norm_last = norm.is_some();
                (x, rope) = (found.x, Some(found));
            } else {
                break;
            }
        }
        Placed { x, norm, rope, is_norm_last, y }
    }

    /// The nodes.
    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        let norm = self.norm.as_ref().map(|n| n.node);
        norm.into_iter().chain(self.rope.as_ref().map(|r| r.node))
    }
}

/// What the norms of queries and keys are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormSpan {
    /// Each head by itself, all with the same weight; or there is no norm.
    Heads,
    /// All heads at once.
    WholeRows,
}

/// A token's attention, from its products to the heads' outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionStep {
    /// The queries are a part of each head of what their matmul made.
    pub q_part: Option<Sliced>,
    /// The queries, up to attention.
    pub q: Placed,
    /// The keys, up to the cache.
    pub k: Placed,
    /// The values' norm, head by head.
    pub v_norm: Option<Norm>,
    /// What is written.
    pub write: Written,
    /// The attention over it.
    pub attention: Attended,
}

impl Group for AttentionStep {
    const NAME: &'static str = "attention_step";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<AttentionStep> {
        let found = || {
            let attention = Attended::of(anchor).filter(|_| matcher.is_free(anchor))?;
            let write = matcher.producer(attention.states[0]).and_then(Written::of)?;
            if write.states != attention.states {
                return None;
            }
            let (q, k) = (Placed::up_to(matcher, attention.q), Placed::up_to(matcher, write.k));
            Some(AttentionStep { q_part: None, q, k, v_norm: None, write, attention })
        };
        let Some(whole) = found() else { return Vec::new() };
        let part = Sliced::making(matcher, whole.q.x);
        let v_norm = whole.write.v.and_then(|v| matcher.producer(v)).and_then(Norm::of);
        let mut all = Vec::new();
        for (q_part, v_norm) in [(&part, &v_norm), (&part, &None), (&None, &v_norm), (&None, &None)] {
            let group = AttentionStep { q_part: q_part.clone(), v_norm: v_norm.clone(), ..whole.clone() };
            if !all.contains(&group) {
                all.push(group);
            }
        }
        all
    }

    fn nodes(&self) -> Vec<NodeId> {
        let AttentionStep { q_part, q, k, v_norm, write, attention } = self;
        let part = q_part.iter().map(|part| part.node).chain(v_norm.iter().map(|norm| norm.node));
        part.chain(q.nodes()).chain(k.nodes()).chain([write.node, attention.node]).collect()
    }
}

impl AttentionStep {
    /// Whether the queries, if they are a part of something, are that of each of attention's heads, and no norm is over all of
    /// them at once.
    #[must_use]
    pub fn is_part_by_heads(&self) -> bool {
        let attrs = &self.attention.attrs;
        self.q_part.as_ref().is_none_or(|Sliced { node: _, x: _, heads, start: _, len, y: _ }| {
            (*heads, *len) == (attrs.num_attention_heads, attrs.head_dim)
                && self.norm_span() == Some(NormSpan::Heads)
        })
    }

    /// Whether the values' norm, if there is one, is of each head, with one weight for all or none.
    #[must_use]
    pub fn are_values_normed_by_head(&self, graph: &Graph) -> bool {
        self.v_norm.as_ref().is_none_or(|norm| {
            norm.heads == self.attention.attrs.num_key_value_heads
                && (norm.weight.is_none() || norm.shared_weight(graph).is_some())
        })
    }

    /// What the norms are over; `None` where that is neither, or not the same of queries and keys.
    #[must_use]
    pub fn norm_span(&self) -> Option<NormSpan> {
        let attrs = &self.attention.attrs;
        let is =
            |placed: &Placed, wanted: usize| placed.norm.as_ref().is_none_or(|norm| norm.heads == wanted);
        if is(&self.q, attrs.num_attention_heads) && is(&self.k, attrs.num_key_value_heads) {
            return Some(NormSpan::Heads);
        }
        (is(&self.q, 1) && is(&self.k, 1)).then_some(NormSpan::WholeRows)
    }

    /// Whether what queries and keys go through is what one launch knows: rotated alike, or neither; norms of heads or of whole
    /// rows, each with one weight for all heads, and behind the rotations only those of heads.
    #[must_use]
    pub fn is_placed_alike(&self, graph: &Graph) -> bool {
        let weighs = |Placed { x: _, norm, rope: _, is_norm_last, y: _ }: &Placed| {
            // Behind the rotations one without weight too.
            let is_known =
                |norm: &Norm| norm.shared_weight(graph).is_some() || (norm.weight.is_none() && *is_norm_last);
            norm.as_ref().is_none_or(is_known)
        };
        let (Some(span), Some(is_norm_last)) = (self.norm_span(), self.is_norm_last()) else { return false };
        self.is_rotated_alike()
            && weighs(&self.q)
            && weighs(&self.k)
            && (!is_norm_last || span == NormSpan::Heads)
    }

    /// Whether the norms stand behind the rotations; `None` where that differs.
    fn is_norm_last(&self) -> Option<bool> {
        let is_last = |placed: &Placed| placed.norm.is_some() && placed.is_norm_last;
        (is_last(&self.q) == is_last(&self.k)).then_some(is_last(&self.q))
    }

    /// Whether queries and keys are rotated alike, head by head, by the positions of the mask; or neither is.
    fn is_rotated_alike(&self) -> bool {
        let AttentionStep { q_part: _, q, k, v_norm: _, write: _, attention } = self;
        let attrs = &attention.attrs;
        let by = |placed: &Placed, wanted: usize| {
            let Some(rope) = &placed.rope else { return Some(None) };
            let Rotated { node: _, x: _, positions, table, pairing, heads, y: _ } = rope;
            (*heads == wanted && *positions == attention.positions).then_some(Some((*table, *pairing)))
        };
        let (q, k) = (by(q, attrs.num_attention_heads), by(k, attrs.num_key_value_heads));
        q.is_some() && q == k
    }
}
