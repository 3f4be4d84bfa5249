//! `route_gate_up`: the choice of experts, their gate and up matmuls, and the gated activation of both.

use super::parts::Routing;
use super::{ExpertsGateUp, Group, Matcher};
use crate::ir::{Node, NodeId};

/// A router and what its experts begin with.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteGateUp {
    /// The choice.
    pub routing: Routing,
    /// The products of the chosen, and their activation.
    pub experts: ExpertsGateUp,
}

impl Group for RouteGateUp {
    const NAME: &'static str = "route_gate_up";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<RouteGateUp> {
        let routed = |experts: ExpertsGateUp| {
            let routing = matcher.producer(experts.gate.ids).and_then(Routing::of)?;
            (routing.ids == experts.gate.ids).then_some(RouteGateUp { routing, experts })
        };
        ExpertsGateUp::candidates(matcher, anchor).into_iter().filter_map(routed).collect()
    }

    fn nodes(&self) -> Vec<NodeId> {
        let RouteGateUp { routing, experts } = self;
        std::iter::once(routing.node).chain(experts.nodes()).collect()
    }
}
