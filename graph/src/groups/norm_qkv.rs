//! `norm_qkv`: a norm and the matmuls that read it, each within bounds where the model has some: q, k and v, an output gate, what
//! a recurrence begins with. Routers alone, and the gates and ups of feed-forward parts, are for other groups.

use super::parts::{Clamped, Gated, Product, RowNorm};
use super::{Group, Matcher};
use crate::ir::{Graph, Node, NodeId, OpKind, ValueId};

/// A product and the bounds behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct Projection {
    /// The product.
    pub product: Product,
    /// What bounds it.
    pub bound: Option<Clamped>,
}

impl Projection {
    /// What is used of it.
    #[must_use]
    pub fn y(&self) -> ValueId {
        self.bound.as_ref().map_or(self.product.y, |bound| bound.y)
    }
}

/// A norm and the products of it.
#[derive(Debug, Clone, PartialEq)]
pub struct NormQkv {
    /// The norm in front.
    pub norm: RowNorm,
    /// All that read it, one or more.
    pub projections: Vec<Projection>,
}

impl Group for NormQkv {
    const NAME: &'static str = "norm_qkv";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<NormQkv> {
        let Some(norm) = RowNorm::of(anchor).filter(|_| matcher.is_free(anchor)) else { return Vec::new() };
        let graph = matcher.graph();
        let all = matcher.readers(norm.y).filter_map(Product::of).filter(|p| !is_of_gate_up(graph, p));
        let (of_routers, others): (Vec<Product>, Vec<Product>) =
            all.partition(|p| is_read_by(graph, p.y, OpKind::Router));
        if others.is_empty() {
            return Vec::new();
        }
        let of = |products: Vec<Product>, bounds: bool| {
            let bound =
                |product: &Product| matcher.readers(product.y).find_map(Clamped::of).filter(|_| bounds);
            let projections = products.into_iter().map(|product| {
                let bound = bound(&product);
                Projection { product, bound }
            });
            NormQkv { norm: norm.clone(), projections: projections.collect() }
        };
        // With the routers that read the same norm, and without; with bounds, and without.
        let mut every = others.clone();
        every.extend(of_routers);
        every.sort_by_key(|product| product.node);
        let mut found: Vec<NormQkv> = Vec::new();
        for group in [of(every.clone(), true), of(every, false), of(others.clone(), true), of(others, false)]
        {
            if !found.contains(&group) {
                found.push(group);
            }
        }
        found
    }

    fn nodes(&self) -> Vec<NodeId> {
        let NormQkv { norm, projections } = self;
        let products = projections.iter().map(|p| p.product.node);
        let bounds = projections.iter().filter_map(|p| p.bound.as_ref().map(|b| b.node));
        std::iter::once(norm.node).chain(products).chain(bounds).collect()
    }
}

/// Whether a node of a kind reads a value: what a product is for.
pub(super) fn is_read_by(graph: &Graph, value: ValueId, kind: OpKind) -> bool {
    graph.consumers(value).any(|reader| reader.op.kind() == kind)
}

/// Whether a product is the gate or the up of a feed-forward part.
fn is_of_gate_up(graph: &Graph, product: &Product) -> bool {
    graph.consumers(product.y).filter_map(Gated::of).any(|gated| is_gate_up(graph, &gated))
}

/// Whether a gate is that of a feed-forward part: it and what it lets through are two products of one row.
pub(super) fn is_gate_up(graph: &Graph, gated: &Gated) -> bool {
    let row = |value: ValueId| {
        let product = graph.value(value).producer.and_then(|id| graph.node(id)).and_then(Product::of);
        product.map(|product| product.x)
    };
    gated.gate != gated.up && row(gated.gate).is_some() && row(gated.gate) == row(gated.up)
}
