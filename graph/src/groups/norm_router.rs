//! `norm_router`: RMSNorm and the matmul of the router that reads it, with the logit of a shared expert's gate where there
//! is one.

use super::norm_qkv::is_read_by;
use super::parts::{Norm, Product};
use super::{Group, Matcher};
use crate::ir::{Node, NodeId, OpKind};

/// A norm and the logits that are made of it.
#[derive(Debug, Clone, PartialEq)]
pub struct NormRouter {
    /// The norm in front.
    pub norm: Norm,
    /// The products whose results routers read, one or more.
    pub logits: Vec<Product>,
}

impl Group for NormRouter {
    const NAME: &'static str = "norm_router";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<NormRouter> {
        let Some(norm) = Norm::of(anchor).filter(|_| matcher.is_free(anchor)) else { return Vec::new() };
        let products = matcher.readers(norm.y).filter_map(Product::of);
        let logits: Vec<Product> =
            products.filter(|p| is_read_by(matcher.graph(), p.y, OpKind::Router)).collect();
        // All of them, or the widest alone: the router's.
        let rows = |p: &Product| p.weight.rows.len();
        let widest = logits.iter().max_by_key(|p| (rows(p), std::cmp::Reverse(p.node))).cloned();
        let alone = widest.filter(|_| logits.len() > 1).map(|p| vec![p]);
        let all = Some(logits).filter(|logits| !logits.is_empty());
        [all, alone].into_iter().flatten().map(|logits| NormRouter { norm: norm.clone(), logits }).collect()
    }

    fn nodes(&self) -> Vec<NodeId> {
        let NormRouter { norm, logits } = self;
        std::iter::once(norm.node).chain(logits.iter().map(|p| p.node)).collect()
    }
}
