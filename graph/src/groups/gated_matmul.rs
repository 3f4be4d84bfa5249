//! `gated_matmul`: what attention or a recurrence gives, under its gate and, in some models, a norm of its heads, the matmul of
//! that, and the addition to the residual stream behind it.

use super::norm_qkv::is_gate_up;
use super::parts::{Gated, HeadsScaled, Norm, Product, Sliced, Sum};
use super::{Group, Matcher};
use crate::ir::{Node, NodeId, ValueId};

/// How a row is gated.
#[derive(Debug, Clone, PartialEq)]
pub enum RowGate {
    /// Element by element.
    Elements(Gated),
    /// By a number a head, the function of a logit a head.
    Heads {
        /// The function; nobody reads its second result.
        act: Gated,
        /// The product with it.
        scaled: HeadsScaled,
    },
}

impl RowGate {
    /// The function of the gate.
    #[must_use]
    pub fn act(&self) -> &Gated {
        match self {
            RowGate::Elements(act) | RowGate::Heads { act, scaled: _ } => act,
        }
    }

    /// What is gated.
    #[must_use]
    pub fn x(&self) -> ValueId {
        match self {
            RowGate::Elements(gated) => gated.up,
            RowGate::Heads { act: _, scaled } => scaled.x,
        }
    }

    /// The result.
    #[must_use]
    pub fn y(&self) -> ValueId {
        match self {
            RowGate::Elements(gated) => gated.y,
            RowGate::Heads { act: _, scaled } => scaled.y,
        }
    }

    /// What makes a value.
    fn making(matcher: &Matcher<'_>, value: ValueId) -> Option<RowGate> {
        let node = matcher.producer(value)?;
        if let Some(gated) = Gated::of(node).filter(|gated| gated.y == value) {
            return (!is_gate_up(matcher.graph(), &gated)).then_some(RowGate::Elements(gated));
        }
        let scaled = HeadsScaled::of(node)?;
        let act = matcher.producer(scaled.factors).and_then(Gated::of)?;
        let is_function = act.activated == scaled.factors
            && act.gate == act.up
            && matcher.graph().consumers(act.y).next().is_none();
        is_function.then_some(RowGate::Heads { act, scaled })
    }

    fn nodes(&self) -> impl Iterator<Item = NodeId> {
        let (act, scaled) = match self {
            RowGate::Elements(gated) => (gated.node, None),
            RowGate::Heads { act, scaled } => (act.node, Some(scaled.node)),
        };
        std::iter::once(act).chain(scaled)
    }
}

/// A gate and the product of what it lets through.
#[derive(Debug, Clone, PartialEq)]
pub struct GatedMatMul {
    /// What goes into the gate's function is a part of each head of what its matmul made.
    pub gate_part: Option<Sliced>,
    /// The gate.
    pub gate: RowGate,
    /// The norm of heads.
    pub norm: Option<Norm>,
    /// The norm stands behind the gate.
    pub is_norm_last: bool,
    /// The product.
    pub product: Product,
    /// The residual stream.
    pub add: Option<Sum>,
}

impl Group for GatedMatMul {
    const NAME: &'static str = "gated_matmul";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<GatedMatMul> {
        let Some(product) = Product::of(anchor).filter(|_| matcher.is_free(anchor)) else {
            return Vec::new();
        };
        let last = matcher.producer(product.x).and_then(Norm::of);
        let is_norm_last = last.is_some();
        let gated = last.as_ref().map_or(product.x, |norm| norm.x);
        let Some(gate) = RowGate::making(matcher, gated) else { return Vec::new() };
        let first = matcher.producer(gate.x()).and_then(Norm::of).filter(|_| !is_norm_last);
        // Without a norm in front, if a backend cannot have it too; one behind cannot be left out.
        let norms = match (first, last) {
            (Some(first), _) => vec![Some(first), None],
            (None, last) => vec![last],
        };
        let add = matcher.readers(product.y).find_map(|reader| Sum::of(reader, product.y));
        let adds = add.map_or(vec![None], |add| vec![Some(add), None]);
        let part = Sliced::making(matcher, gate.act().gate);
        let parts = part.map_or(vec![None], |part| vec![Some(part), None]);
        let mut all = Vec::new();
        for norm in norms {
            for add in &adds {
                for part in &parts {
                    all.push(GatedMatMul {
                        gate_part: part.clone(),
                        gate: gate.clone(),
                        norm: norm.clone(),
                        is_norm_last,
                        product: product.clone(),
                        add: add.clone(),
                    });
                }
            }
        }
        all
    }

    fn nodes(&self) -> Vec<NodeId> {
        let GatedMatMul { gate_part, gate, norm, is_norm_last: _, product, add } = self;
        let norm = norm.iter().map(|norm| norm.node);
        let part = gate_part.iter().map(|part| part.node);
        gate.nodes()
            .chain(part)
            .chain(norm)
            .chain([product.node])
            .chain(add.iter().map(|add| add.node))
            .collect()
    }
}
