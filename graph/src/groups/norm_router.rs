//! `norm_router`: a norm and the matmul of the router that reads it, with the logit of a shared expert's gate where there is one,
//! and what makes the residual stream in front: a post-norm and the addition of it.

use super::norm_qkv::is_read_by;
use super::parts::{Product, RowNorm};
use super::{Group, Matcher, NormResidual};
use crate::ir::{Node, NodeId, OpKind};

/// A norm and the logits that are made of it.
#[derive(Debug, Clone, PartialEq)]
pub struct NormRouter {
    /// What makes the row that is normed.
    pub post: Option<NormResidual>,
    /// The norm in front.
    pub norm: RowNorm,
    /// The products whose results routers read, one or more.
    pub logits: Vec<Product>,
}

impl Group for NormRouter {
    const NAME: &'static str = "norm_router";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<NormRouter> {
        let Some(norm) = RowNorm::of(anchor).filter(|_| matcher.is_free(anchor)) else { return Vec::new() };
        let products = matcher.readers(norm.y).filter_map(Product::of);
        let logits: Vec<Product> =
            products.filter(|p| is_read_by(matcher.graph(), p.y, OpKind::Router)).collect();
        // All of them, or the widest alone: the router's.
        let rows = |p: &Product| p.weight.rows.len();
        let widest = logits.iter().max_by_key(|p| (rows(p), std::cmp::Reverse(p.node))).cloned();
        let alone = widest.filter(|_| logits.len() > 1).map(|p| vec![p]);
        let all = Some(logits).filter(|logits| !logits.is_empty());
        let posts = match NormResidual::making(matcher, norm.x) {
            Some(post) => vec![Some(post), None],
            None => vec![None],
        };
        let choices =
            posts.into_iter().flat_map(|post| [&all, &alone].map(|logits| (post.clone(), logits.clone())));
        choices
            .filter_map(|(post, logits)| Some(NormRouter { post, norm: norm.clone(), logits: logits? }))
            .collect()
    }

    fn nodes(&self) -> Vec<NodeId> {
        let NormRouter { post, norm, logits } = self;
        let post = post.iter().flat_map(Group::nodes);
        post.chain([norm.node]).chain(logits.iter().map(|p| p.node)).collect()
    }
}
