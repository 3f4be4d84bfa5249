//! `down_combine`: the down matmul of the chosen experts and their weighted sum, with what is added to that: the shared
//! expert's down matmul or its output, times its gate where it has one, and the residual stream.

use super::parts::{Combined, ExpertProduct, Product, Routing, Scaled, Sum};
use super::{Group, Matcher};
use crate::ir::{Dim, GateKind, Node, NodeId, RouterAttrs, ValueId};

/// The gate of a shared expert: a router over one expert whose weight is the factor.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedGate {
    /// The function of the logit.
    pub routing: Routing,
    /// The product with it.
    pub gated: Combined,
}

impl SharedGate {
    /// Whether the factor is scale · sigmoid(logit), as in every model that has one: a choice of one expert of one.
    #[must_use]
    pub fn is_sigmoid(&self) -> bool {
        let SharedGate {
            routing: Routing { node: _, logits: _, attrs, ids: _, weights: _ },
            gated: Combined { node: _, x: _, weights: _, y: _ },
        } = self;
        matches!(
            attrs,
            RouterAttrs {
                num_experts: 1,
                num_experts_per_tok: 1,
                gate: GateKind::Sigmoid,
                norm_topk_prob: false,
                scale: _,
                // Both change who is chosen, of one.
                selection_bias: _,
                groups: _,
                expert_scale: None,
            }
        )
    }
}

/// The shared expert's output on its way into the sum.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedExpert {
    /// The product that makes the output.
    pub down: Option<Product>,
    /// The output, before its gate.
    pub x: ValueId,
    /// Its gate.
    pub gate: Option<SharedGate>,
    /// The addition to the routed experts' sum.
    pub add: Sum,
    /// What the sum of both is multiplied by: ½ for their mean.
    pub scaled: Option<Scaled>,
}

/// The values that the sums become one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    /// The last of them: what the group gives.
    pub y: ValueId,
    /// The routed experts' sum, where it is not the last.
    pub routed: Option<ValueId>,
    /// That with the shared expert's output, where there is one and it is not the last.
    pub with_shared: Option<ValueId>,
    /// The mean of both, where it is taken and not the last.
    pub mean: Option<ValueId>,
}

/// Down, weighted sum, additions.
#[derive(Debug, Clone, PartialEq)]
pub struct DownCombine {
    /// The product of the chosen experts.
    pub down: ExpertProduct,
    /// Their weighted sum.
    pub combined: Combined,
    /// The shared expert.
    pub shared: Option<SharedExpert>,
    /// The residual stream.
    pub add: Option<Sum>,
}

impl DownCombine {
    /// The sums in their order.
    #[must_use]
    pub fn sums(&self) -> Sums {
        let (routed, shared) = (self.combined.y, self.shared.as_ref());
        let with_shared = shared.map(|shared| shared.add.y);
        let mean = shared.and_then(|shared| shared.scaled.as_ref()).map(|scaled| scaled.y);
        let y = self.add.as_ref().map(|add| add.y).or(mean).or(with_shared).unwrap_or(routed);
        let inner = |value: Option<ValueId>| value.filter(|value| *value != y);
        Sums { y, routed: inner(Some(routed)), with_shared: inner(with_shared), mean: inner(mean) }
    }
}

impl Group for DownCombine {
    const NAME: &'static str = "down_combine";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<DownCombine> {
        let found = || {
            let combined = Combined::of(anchor).filter(|_| matcher.is_free(anchor))?;
            let down = matcher.producer(combined.x).and_then(ExpertProduct::of)?;
            Some((down, combined))
        };
        let Some((down, combined)) = found() else { return Vec::new() };
        let of = |shared, add| DownCombine { down: down.clone(), combined: combined.clone(), shared, add };
        let added = |value| matcher.readers(value).find_map(|reader| Sum::of(reader, value));
        let mut all = Vec::new();
        if let Some(first) = added(combined.y) {
            // The first of two additions is the shared expert's, if nothing but the second reads it.
            let only = |value| matcher.readers(value).next().filter(|_| matcher.reader_count(value) == 1);
            let scaled = only(first.y).and_then(Scaled::of);
            let sum = scaled.as_ref().map_or(first.y, |scaled| scaled.y);
            let second = added(sum).filter(|_| matcher.reader_count(sum) == 1);
            if let Some(second) = second {
                let bare =
                    SharedExpert { down: None, x: first.other, gate: None, add: first.clone(), scaled };
                let gated = gate(matcher, first.other).map(|(x, gate)| SharedExpert {
                    x,
                    gate: Some(gate),
                    ..bare.clone()
                });
                for shared in gated.into_iter().chain([bare]) {
                    if let Some(down) = matcher.producer(shared.x).and_then(Product::of) {
                        let shared = SharedExpert { down: Some(down), ..shared.clone() };
                        all.push(of(Some(shared), Some(second.clone())));
                    }
                    all.push(of(Some(shared), Some(second.clone())));
                }
            }
            // The only addition is the shared expert's where what is added is a product of its own: a post-norm stands behind.
            if let Some(down) = matcher.producer(first.other).and_then(Product::of) {
                let x = first.other;
                let shared =
                    SharedExpert { down: Some(down), x, gate: None, add: first.clone(), scaled: None };
                all.push(of(Some(shared), None));
            }
            all.push(of(None, Some(first)));
        }
        all.push(of(None, None));
        all
    }

    fn nodes(&self) -> Vec<NodeId> {
        let DownCombine { down, combined, shared, add } = self;
        let mut all = vec![down.node, combined.node];
        if let Some(SharedExpert { down, x: _, gate, add, scaled }) = shared {
            all.extend(down.iter().map(|down| down.node));
            all.extend(gate.iter().flat_map(|SharedGate { routing, gated }| [routing.node, gated.node]));
            all.push(add.node);
            all.extend(scaled.iter().map(|scaled| scaled.node));
        }
        all.extend(add.iter().map(|add| add.node));
        all
    }
}

/// What makes `value` of a row and one factor for it.
fn gate(matcher: &Matcher<'_>, value: ValueId) -> Option<(ValueId, SharedGate)> {
    let gated = matcher.producer(value).and_then(Combined::of)?;
    let routing = matcher.producer(gated.weights).and_then(Routing::of)?;
    let is_row = matches!(matcher.graph().value(gated.x).shape.0[..], [Dim::Tokens, Dim::Fixed(_)]);
    (routing.weights == gated.weights && is_row).then_some((gated.x, SharedGate { routing, gated }))
}
