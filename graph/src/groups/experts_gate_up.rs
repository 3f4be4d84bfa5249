//! `experts_gate_up`: the gate and up matmuls of the chosen experts and the gated activation of both.

use super::parts::{ExpertProduct, Gated};
use super::{Group, Matcher};
use crate::ir::{Node, NodeId};

/// Two experts' products of one input and one choice, and what the activation makes of them.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsGateUp {
    /// The gate's product.
    pub gate: ExpertProduct,
    /// The product that is let through.
    pub up: ExpertProduct,
    /// The activation.
    pub act: Gated,
}

impl Group for ExpertsGateUp {
    const NAME: &'static str = "experts_gate_up";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<ExpertsGateUp> {
        let found = || {
            let act = Gated::of(anchor).filter(|_| matcher.is_free(anchor))?;
            let gate = matcher.producer(act.gate).and_then(ExpertProduct::of)?;
            let up = matcher.producer(act.up).and_then(ExpertProduct::of)?;
            let alike = (gate.x, gate.ids) == (up.x, up.ids) && gate.node != up.node;
            alike.then_some(ExpertsGateUp { gate, up, act })
        };
        found().into_iter().collect()
    }

    fn nodes(&self) -> Vec<NodeId> {
        let ExpertsGateUp { gate, up, act } = self;
        vec![gate.node, up.node, act.node]
    }
}
