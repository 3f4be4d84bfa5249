//! `latent_heads`: all between the products of latent attention and the attention itself: a query's two parts, the one rotated,
//! the other through its head's k matrix; the latent's norm, the rotated key behind it, and the cache.

use super::parts::{Attended, HeadProduct, Joined, Product, Rotated, RowNorm, Sliced, Tempered, Written};
use super::{Group, Matcher};
use crate::ir::{Graph, Node, NodeId, PositionScaleAttrs, ValueId};

/// The product that makes the queries, of a latent of their own.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentQuery {
    /// The latent's norm.
    pub norm: RowNorm,
    /// The product of it.
    pub product: Product,
}

/// Queries and keys of latent attention.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentHeads {
    /// What makes the queries.
    pub query: Option<LatentQuery>,
    /// The part of each query that meets the latent.
    pub nope: Sliced,
    /// The part that is rotated.
    pub pe: Sliced,
    /// Its rotation.
    pub q_rope: Option<Rotated>,
    /// The other part through the k matrices.
    pub absorbed: HeadProduct,
    /// Both of each head side by side.
    pub q_joined: Joined,
    /// Times a factor of the position.
    pub tempered: Option<Tempered>,
    /// The latent's norm.
    pub c_norm: RowNorm,
    /// The rotation of the key behind it.
    pub k_rope: Option<Rotated>,
    /// The latent and that key.
    pub k_joined: Joined,
    /// What is written of them.
    pub write: Written,
}

impl LatentHeads {
    /// Whether its parts are as one launch knows them: of as many heads, with one key, which stands for the values too; rotated
    /// alike or not at all; and what depends on positions takes the step's.
    #[must_use]
    pub fn is_placed_alike(&self, graph: &Graph) -> bool {
        let LatentHeads {
            query: _,
            nope: Sliced { node: _, x: _, heads: nope_heads, start: _, len: _, y: _ },
            pe: Sliced { node: _, x: _, heads: pe_heads, start: _, len: _, y: _ },
            q_rope,
            absorbed: HeadProduct { node: _, x: _, weight: _, transposed: false, y: _ },
            q_joined: Joined { node: _, a: _, b: _, heads, y: _ },
            tempered,
            c_norm: _,
            k_rope,
            k_joined: Joined { node: _, a: _, b: _, heads: 1, y: _ },
            write: Written { node: _, k: _, v: None, slots: _, key: _, value: None, states: _ },
        } = self
        else {
            return false;
        };
        let how = |rope: &Rotated| {
            let Rotated { node: _, x: _, positions, table, pairing, heads: _, y: _ } = rope;
            (*positions, *table, *pairing)
        };
        let turns = |rope: &Option<Rotated>, heads: usize| {
            rope.as_ref().is_none_or(|r| r.heads == heads && r.positions == graph.inputs.positions)
        };
        let at_positions = |tempered: &Tempered| {
            let Tempered { node: _, x: _, positions, attrs, y: _ } = tempered;
            let PositionScaleAttrs { scale: _, length: _, offset: _ } = attrs;
            *positions == graph.inputs.positions
        };
        heads == nope_heads
            && heads == pe_heads
            && q_rope.as_ref().map(how) == k_rope.as_ref().map(how)
            && turns(q_rope, *heads)
            && turns(k_rope, 1)
            && tempered.as_ref().is_none_or(at_positions)
    }
}

/// What may be rotated on the way to a value: that, and the rotation.
fn unrotated(matcher: &Matcher<'_>, y: ValueId) -> (ValueId, Option<Rotated>) {
    let rope = matcher.producer(y).and_then(Rotated::of);
    (rope.as_ref().map_or(y, |rope| rope.x), rope)
}

impl Group for LatentHeads {
    const NAME: &'static str = "latent_heads";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<LatentHeads> {
        let found = || {
            let write = Written::of(anchor).filter(|_| matcher.is_free(anchor))?;
            let attention = matcher.graph().consumers(write.states[0]).find_map(Attended::of)?;
            let tempered = matcher.producer(attention.q).and_then(Tempered::of);
            let q = tempered.as_ref().map_or(attention.q, |tempered| tempered.x);
            let q_joined = matcher.producer(q).and_then(Joined::of)?;
            let absorbed = matcher.producer(q_joined.a).and_then(HeadProduct::of)?;
            let nope = Sliced::making(matcher, absorbed.x)?;
            let (pe, q_rope) = unrotated(matcher, q_joined.b);
            let pe = Sliced::making(matcher, pe).filter(|pe| pe.x == nope.x)?;
            let k_joined = matcher.producer(write.k).and_then(Joined::of)?;
            let c_norm = matcher.producer(k_joined.a).and_then(RowNorm::of)?;
            let (_, k_rope) = unrotated(matcher, k_joined.b);
            Some(LatentHeads {
                query: None,
                nope,
                pe,
                q_rope,
                absorbed,
                q_joined,
                tempered,
                c_norm,
                k_rope,
                k_joined,
                write,
            })
        };
        let Some(bare) = found() else { return Vec::new() };
        let query = || {
            let product = matcher.producer(bare.nope.x).and_then(Product::of)?;
            let norm = matcher.producer(product.x).and_then(RowNorm::of)?;
            Some(LatentHeads { query: Some(LatentQuery { norm, product }), ..bare.clone() })
        };
        query().into_iter().chain([bare.clone()]).collect()
    }

    fn nodes(&self) -> Vec<NodeId> {
        let LatentHeads {
            query,
            nope,
            pe,
            q_rope,
            absorbed,
            q_joined,
            tempered,
            c_norm,
            k_rope,
            k_joined,
            write,
        } = self;
        let query = query.iter().flat_map(|LatentQuery { norm, product }| [norm.node, product.node]);
        let ropes = q_rope.iter().chain(k_rope).map(|rope| rope.node);
        let tempered = tempered.iter().map(|tempered| tempered.node);
        let always =
            [nope.node, pe.node, absorbed.node, q_joined.node, c_norm.node, k_joined.node, write.node];
        query.chain(ropes).chain(tempered).chain(always).collect()
    }
}
