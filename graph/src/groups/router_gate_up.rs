//! `router_gate_up`: the norm and the logits of a router, and what else begins with the same row: gate, up and activation of the
//! expert that every token takes or of an MLP beside the experts, and a norm that the experts read by themselves.

use super::parts::{Gated, Product, RowNorm};
use super::{GateUp, Group, Matcher, NormRouter};
use crate::ir::{Node, NodeId};

/// A router's logits, and gate and up of the same row.
#[derive(Debug, Clone, PartialEq)]
pub struct RouterGateUp {
    /// The norm and what routers read of it.
    pub router: NormRouter,
    /// Gate and up, whose norm is the router's, or one of its own of the same row.
    pub gate_up: GateUp,
    /// Another norm of the same row, for others.
    pub beside: Option<RowNorm>,
}

impl RouterGateUp {
    /// Gate and up of a normed row.
    fn gate_up(matcher: &Matcher<'_>, norm: &RowNorm) -> Option<GateUp> {
        matcher.readers(norm.y).filter_map(Product::of).find_map(|gate| {
            let act = matcher.readers(gate.y).filter_map(Gated::of).find(|act| act.gate == gate.y)?;
            let up = matcher.producer(act.up).and_then(Product::of)?;
            (up.x == gate.x && up.node != gate.node).then_some(GateUp { norm: None, gate, up, act })
        })
    }
}

impl Group for RouterGateUp {
    const NAME: &'static str = "router_gate_up";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<RouterGateUp> {
        let mut all = Vec::new();
        for router in NormRouter::candidates(matcher, anchor) {
            if let Some(gate_up) = RouterGateUp::gate_up(matcher, &router.norm) {
                all.push(RouterGateUp { router: router.clone(), gate_up, beside: None });
            }
            // Norms of the same row: gate and up's own, and one that neither needs.
            let norms = || {
                matcher.readers(router.norm.x).filter_map(RowNorm::of).filter(|n| n.node != router.norm.node)
            };
            for norm in norms() {
                let Some(gate_up) = RouterGateUp::gate_up(matcher, &norm) else { continue };
                let gate_up = GateUp { norm: Some(norm.clone()), ..gate_up };
                let bare = RouterGateUp { router: router.clone(), gate_up, beside: None };
                let others = norms().filter(|other| other.node != norm.node);
                all.extend(others.map(|other| RouterGateUp { beside: Some(other), ..bare.clone() }));
                all.push(bare);
            }
        }
        all
    }

    fn nodes(&self) -> Vec<NodeId> {
        let RouterGateUp { router, gate_up, beside } = self;
        let beside = beside.iter().map(|norm| norm.node);
        router.nodes().into_iter().chain(gate_up.nodes()).chain(beside).collect()
    }
}
