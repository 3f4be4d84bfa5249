//! `delta_step`: the gates of the gated delta rule, made of products that may hold them beside something else, and the rule.

use super::parts::{DeltaGated, DeltaRuled, Sliced};
use super::{Group, Matcher};
use crate::ir::{Node, NodeId};

/// Gates and rule.
#[derive(Debug, Clone, PartialEq)]
pub struct DeltaStep {
    /// What β is made of is a part of each head of a product.
    pub b_part: Option<Sliced>,
    /// What the decay is made of is one.
    pub dt_part: Option<Sliced>,
    /// The gates.
    pub gates: DeltaGated,
    /// The rule.
    pub rule: DeltaRuled,
}

impl Group for DeltaStep {
    const NAME: &'static str = "delta_step";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<DeltaStep> {
        let found = || {
            let rule = DeltaRuled::of(anchor).filter(|_| matcher.is_free(anchor))?;
            let gates = matcher.producer(rule.beta).and_then(DeltaGated::of)?;
            let is_of_both = (gates.beta, gates.decay) == (rule.beta, rule.decay);
            is_of_both.then_some(DeltaStep { b_part: None, dt_part: None, gates, rule })
        };
        let Some(whole) = found() else { return Vec::new() };
        let (b_part, dt_part) =
            (Sliced::making(matcher, whole.gates.b), Sliced::making(matcher, whole.gates.dt));
        let of_parts = DeltaStep { b_part, dt_part, ..whole.clone() };
        if of_parts == whole { vec![whole] } else { vec![of_parts, whole] }
    }

    fn nodes(&self) -> Vec<NodeId> {
        let DeltaStep { b_part, dt_part, gates, rule } = self;
        let parts = b_part.iter().chain(dt_part).map(|part| part.node);
        parts.chain([gates.node, rule.node]).collect()
    }
}
