//! `matmul_residual`: a matmul and the addition to the residual stream behind it.

use super::parts::{Product, Sum};
use super::{Group, Matcher};
use crate::ir::{Node, NodeId};

/// A product and what is added to it.
#[derive(Debug, Clone, PartialEq)]
pub struct MatMulResidual {
    /// The product.
    pub product: Product,
    /// The addition.
    pub add: Sum,
}

impl Group for MatMulResidual {
    const NAME: &'static str = "matmul_residual";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<MatMulResidual> {
        if !matcher.is_free(anchor) {
            return Vec::new();
        }
        let of = |value| {
            let add = Sum::of(anchor, value)?;
            let product = matcher.producer(value).and_then(Product::of)?;
            Some(MatMulResidual { product, add })
        };
        anchor.inputs.iter().filter_map(|value| of(*value)).collect()
    }

    fn nodes(&self) -> Vec<NodeId> {
        let MatMulResidual { product, add } = self;
        vec![product.node, add.node]
    }
}
