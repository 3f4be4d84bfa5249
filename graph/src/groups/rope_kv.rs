//! `rope_kv`: Q/K norm, RoPE, KvWrite: everything between the products and attention.

use super::attention_step::Placed;
use super::parts::{Attended, Written};
use super::{Group, Matcher};
use crate::ir::{Node, NodeId};

/// Queries placed, keys placed and written with the values.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeKv {
    /// The queries, up to attention.
    pub q: Placed,
    /// The keys, up to the cache.
    pub k: Placed,
    /// What is written.
    pub write: Written,
}

impl Group for RopeKv {
    const NAME: &'static str = "rope_kv";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<RopeKv> {
        let found = || {
            let write = Written::of(anchor).filter(|_| matcher.is_free(anchor))?;
            // The queries that this cache is for.
            let attention = matcher.graph().consumers(write.states[0]).find_map(Attended::of)?;
            let (q, k) = (Placed::up_to(matcher, attention.q), Placed::up_to(matcher, write.k));
            let places = |p: &Placed| p.norm.is_some() || p.rope.is_some();
            (places(&q) && places(&k)).then_some(RopeKv { q, k, write })
        };
        found().into_iter().collect()
    }

    fn nodes(&self) -> Vec<NodeId> {
        let RopeKv { q, k, write } = self;
        q.nodes().chain(k.nodes()).chain([write.node]).collect()
    }
}
