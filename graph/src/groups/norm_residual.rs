//! `norm_residual`: the RMSNorm of what a part of a layer made, a post-norm, and the addition to the residual stream behind it.

use super::parts::{RowNorm, RowNormKind, Sum};
use super::{Group, Matcher};
use crate::ir::{Node, NodeId, ValueId};

/// A norm and what is added to it.
#[derive(Debug, Clone, PartialEq)]
pub struct NormResidual {
    /// The norm.
    pub norm: RowNorm,
    /// The addition.
    pub add: Sum,
}

impl NormResidual {
    /// What makes a value: a sum of a post-norm and the residual stream, either of which may stand first.
    pub(super) fn making(matcher: &Matcher<'_>, value: ValueId) -> Option<NormResidual> {
        let sum = matcher.producer(value)?;
        let of = |operand: &ValueId| {
            let add = Sum::of(sum, *operand)?;
            let norm = matcher.producer(*operand).and_then(RowNorm::of)?;
            (norm.kind == RowNormKind::Rms).then_some(NormResidual { norm, add })
        };
        let mut found = sum.inputs.iter().filter_map(of);
        // Where both operands are norms, which of them is the post-norm is not told.
        found.next().filter(|_| found.next().is_none())
    }
}

impl Group for NormResidual {
    const NAME: &'static str = "norm_residual";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<NormResidual> {
        let sum = anchor.outputs.first().filter(|_| matcher.is_free(anchor));
        sum.and_then(|sum| NormResidual::making(matcher, *sum)).into_iter().collect()
    }

    fn nodes(&self) -> Vec<NodeId> {
        let NormResidual { norm, add } = self;
        vec![norm.node, add.node]
    }
}
