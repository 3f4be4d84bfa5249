//! `attention_step`: Q/K norm, RoPE, KvWrite and Attention.

use super::parts::{Attended, Norm, Rotated, Written};
use super::{Group, Matcher};
use crate::ir::{Node, NodeId, ValueId};

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
    /// The queries, up to attention.
    pub q: Placed,
    /// The keys, up to the cache.
    pub k: Placed,
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
            Some(AttentionStep { q, k, write, attention })
        };
        found().into_iter().collect()
    }

    fn nodes(&self) -> Vec<NodeId> {
        let AttentionStep { q, k, write, attention } = self;
        q.nodes().chain(k.nodes()).chain([write.node, attention.node]).collect()
    }
}

impl AttentionStep {
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

    /// Whether the norms stand behind the rotations; `None` where that differs.
    #[must_use]
    pub fn is_norm_last(&self) -> Option<bool> {
        let is_last = |placed: &Placed| placed.norm.is_some() && placed.is_norm_last;
        (is_last(&self.q) == is_last(&self.k)).then_some(is_last(&self.q))
    }

    /// Whether queries and keys are rotated alike, head by head, by the positions of the mask; or neither is.
    #[must_use]
    pub fn is_rotated_alike(&self) -> bool {
        let AttentionStep { q, k, write: _, attention } = self;
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
