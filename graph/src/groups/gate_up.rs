//! `gate_up`: the gate and up matmuls of one input and the gated activation of both, with the norm in front where it is
//! free: the first half of a dense layer, or of a shared expert.

use super::parts::{Gated, Product, RowNorm};
use super::{Group, Matcher};
use crate::ir::{Node, NodeId};

/// Two products of one input, and what the activation makes of them.
#[derive(Debug, Clone, PartialEq)]
pub struct GateUp {
    /// The norm that makes the input.
    pub norm: Option<RowNorm>,
    /// The gate's product.
    pub gate: Product,
    /// The product that is let through.
    pub up: Product,
    /// The activation.
    pub act: Gated,
}

impl Group for GateUp {
    const NAME: &'static str = "gate_up";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<GateUp> {
        let found = || {
            let act = Gated::of(anchor).filter(|_| matcher.is_free(anchor))?;
            let gate = matcher.producer(act.gate).and_then(Product::of)?;
            let up = matcher.producer(act.up).and_then(Product::of)?;
            (gate.x == up.x && gate.node != up.node).then_some(GateUp { norm: None, gate, up, act })
        };
        let Some(bare) = found() else { return Vec::new() };
        let norm = matcher.producer(bare.gate.x).and_then(RowNorm::of);
        let normed = norm.map(|norm| GateUp { norm: Some(norm), ..bare.clone() });
        normed.into_iter().chain([bare]).collect()
    }

    fn nodes(&self) -> Vec<NodeId> {
        let GateUp { norm, gate, up, act } = self;
        norm.iter().map(|n| n.node).chain([gate.node, up.node, act.node]).collect()
    }
}
