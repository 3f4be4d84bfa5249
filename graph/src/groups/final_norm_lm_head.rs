//! `final_norm_lm_head`: the rows whose logits are asked for, their norm, lm_head.

use super::parts::{Picked, Product, RowNorm};
use super::{Group, Matcher};
use crate::ir::{Node, NodeId};

/// Rows, norm, product.
#[derive(Debug, Clone, PartialEq)]
pub struct FinalNormLmHead {
    /// The choice of rows.
    pub picked: Picked,
    /// The norm of those.
    pub norm: RowNorm,
    /// The product with the table of the vocabulary.
    pub product: Product,
}

impl Group for FinalNormLmHead {
    const NAME: &'static str = "final_norm_lm_head";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<FinalNormLmHead> {
        let found = || {
            let picked = Picked::of(anchor).filter(|_| matcher.is_free(anchor))?;
            let norm = matcher.readers(picked.y).find_map(RowNorm::of)?;
            let product = matcher.readers(norm.y).find_map(Product::of)?;
            Some(FinalNormLmHead { picked, norm, product })
        };
        found().into_iter().collect()
    }

    fn nodes(&self) -> Vec<NodeId> {
        let FinalNormLmHead { picked, norm, product } = self;
        vec![picked.node, norm.node, product.node]
    }
}
