//! `norm_qkv`: RMSNorm and every matmul that reads it, but for routers and gates: q, k and v.

use super::parts::{Norm, Product};
use super::{Group, Matcher};
use crate::ir::{Graph, Node, NodeId, OpKind, ValueId};

/// A norm and the products of it.
#[derive(Debug, Clone, PartialEq)]
pub struct NormQkv {
    /// The norm in front.
    pub norm: Norm,
    /// All that read it, one or more.
    pub products: Vec<Product>,
}

impl Group for NormQkv {
    const NAME: &'static str = "norm_qkv";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<NormQkv> {
        let Some(norm) = Norm::of(anchor).filter(|_| matcher.is_free(anchor)) else { return Vec::new() };
        let graph = matcher.graph();
        let products = matcher.readers(norm.y).filter_map(Product::of);
        let products: Vec<Product> = products
            .filter(|p| !is_read_by(graph, p.y, OpKind::Router) && !is_read_by(graph, p.y, OpKind::GatedAct))
            .collect();
        if products.is_empty() { Vec::new() } else { vec![NormQkv { norm, products }] }
    }

    fn nodes(&self) -> Vec<NodeId> {
        let NormQkv { norm, products } = self;
        std::iter::once(norm.node).chain(products.iter().map(|p| p.node)).collect()
    }
}

/// Whether a node of a kind reads a value: what a product is for.
pub(super) fn is_read_by(graph: &Graph, value: ValueId, kind: OpKind) -> bool {
    graph.consumers(value).any(|reader| reader.op.kind() == kind)
}
