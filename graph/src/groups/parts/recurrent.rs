//! Parts that carry something from token to token, and what stands around them.

use crate::ir::{DeltaRuleAttrs, Node, NodeId, Op, ValueId, WeightId};

/// [`Op::DeltaGates`]: b, dt → β and decay.
#[derive(Debug, Clone, PartialEq)]
pub struct DeltaGated {
    /// The node.
    pub node: NodeId,
    /// What β is made of.
    pub b: ValueId,
    /// What the decay is made of.
    pub dt: ValueId,
    /// A factor of each head; F32.
    pub a: WeightId,
    /// Added to dt; F32.
    pub dt_bias: WeightId,
    /// The least logarithm of a decay.
    pub bound: Option<f32>,
    /// β.
    pub beta: ValueId,
    /// The decay.
    pub decay: ValueId,
}

impl DeltaGated {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<DeltaGated> {
        let Op::DeltaGates { a, dt_bias, bound } = node.op else { return None };
        let ([b, dt], [beta, decay]) = (&node.inputs[..], &node.outputs[..]) else { return None };
        Some(DeltaGated { node: node.id, b: *b, dt: *dt, a, dt_bias, bound, beta: *beta, decay: *decay })
    }
}

/// [`Op::DeltaRule`]: qkv, β, decay → y.
#[derive(Debug, Clone, PartialEq)]
pub struct DeltaRuled {
    /// The node.
    pub node: NodeId,
    /// Queries, keys and values.
    pub qkv: ValueId,
    /// How much of what a key holds is replaced.
    pub beta: ValueId,
    /// What is left of the state.
    pub decay: ValueId,
    /// The tokens' positions.
    pub positions: ValueId,
    /// The sequences that the tokens belong to.
    pub sequence: ValueId,
    /// Heads, norms and the state.
    pub attrs: DeltaRuleAttrs,
    /// The result.
    pub y: ValueId,
}

impl DeltaRuled {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<DeltaRuled> {
        let (Op::DeltaRule(attrs), [qkv, beta, decay, positions, sequence]) = (&node.op, &node.inputs[..])
        else {
            return None;
        };
        Some(DeltaRuled {
            node: node.id,
            qkv: *qkv,
            beta: *beta,
            decay: *decay,
            positions: *positions,
            sequence: *sequence,
            attrs: attrs.clone(),
            y: node.outputs[0],
        })
    }
}
