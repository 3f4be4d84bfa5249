//! `norms_residual`: a post-norm, of what a part of a layer made or of the sum of two parts under norms of their own, the addition to
//! the residual stream, and a factor of the layer's output.

use super::parts::{RowNorm, RowNormKind, Scaled, Sum};
use super::{Group, Matcher, NormResidual};
use crate::ir::{Node, NodeId, ValueId};

/// Two normed rows and their sum.
#[derive(Debug, Clone, PartialEq)]
pub struct NormedSum {
    /// One of them.
    pub a: RowNorm,
    /// The other: what the sum adds to it.
    pub b: RowNorm,
    /// Their sum.
    pub sum: Sum,
}

impl NormedSum {
    /// What makes a value.
    fn making(matcher: &Matcher<'_>, value: ValueId) -> Option<NormedSum> {
        let node = matcher.producer(value)?;
        let sum = Sum::of(node, *node.inputs.first()?)?;
        let normed = |value: ValueId| {
            matcher.producer(value).and_then(RowNorm::of).filter(|norm| norm.kind == RowNormKind::Rms)
        };
        Some(NormedSum { a: normed(node.inputs[0])?, b: normed(sum.other)?, sum })
    }
}

/// A post-norm with more than itself in front or behind.
#[derive(Debug, Clone, PartialEq)]
pub struct NormsResidual {
    /// What is normed, if it is the sum of two parts.
    pub parts: Option<NormedSum>,
    /// The post-norm and the addition.
    pub last: NormResidual,
    /// The factor behind it.
    pub scaled: Option<Scaled>,
}

impl Group for NormsResidual {
    const NAME: &'static str = "norms_residual";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<NormsResidual> {
        let found = || {
            let sum = anchor.outputs.first().filter(|_| matcher.is_free(anchor))?;
            let last = NormResidual::making(matcher, *sum)?;
            let parts = NormedSum::making(matcher, last.norm.x);
            let scaled = matcher.readers(*sum).find_map(Scaled::of);
            Some(NormsResidual { parts, last, scaled })
        };
        let Some(whole) = found() else { return Vec::new() };
        let NormsResidual { parts, last, scaled } = &whole;
        let mut all = Vec::new();
        if parts.is_some() && scaled.is_some() {
            all.push(whole.clone());
        }
        if parts.is_some() {
            all.push(NormsResidual { scaled: None, ..whole.clone() });
        }
        if scaled.is_some() {
            all.push(NormsResidual { parts: None, last: last.clone(), scaled: scaled.clone() });
        }
        all
    }

    fn nodes(&self) -> Vec<NodeId> {
        let NormsResidual { parts, last, scaled } = self;
        let parts = parts.iter().flat_map(|NormedSum { a, b, sum }| [a.node, b.node, sum.node]);
        parts.chain(last.nodes()).chain(scaled.iter().map(|scaled| scaled.node)).collect()
    }
}
