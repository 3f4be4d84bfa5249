//! Parts that take heads apart, put them together, or have a matrix or a factor for each.

use crate::groups::Matcher;
use crate::ir::{Node, NodeId, Op, PositionScaleAttrs, ValueId, WeightSlice};

/// [`Op::Slice`]: a part of each head of x → y.
#[derive(Debug, Clone, PartialEq)]
pub struct Sliced {
    /// The node.
    pub node: NodeId,
    /// What it is a part of.
    pub x: ValueId,
    /// Heads in the row.
    pub heads: usize,
    /// The first element of a head that is taken.
    pub start: usize,
    /// How many are.
    pub len: usize,
    /// The result.
    pub y: ValueId,
}

impl Sliced {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<Sliced> {
        let Op::Slice { heads, start, len } = node.op else { return None };
        Some(Sliced { node: node.id, x: node.inputs[0], heads, start, len, y: node.outputs[0] })
    }

    /// What makes a value, if that is one and free.
    pub(in crate::groups) fn making(matcher: &Matcher<'_>, value: ValueId) -> Option<Sliced> {
        matcher.producer(value).and_then(Sliced::of)
    }
}

/// [`Op::Concat`]: of each head its elements of a, then those of b → y.
#[derive(Debug, Clone, PartialEq)]
pub struct Joined {
    /// The node.
    pub node: NodeId,
    /// What comes first.
    pub a: ValueId,
    /// What comes behind it.
    pub b: ValueId,
    /// Heads in the row.
    pub heads: usize,
    /// The result.
    pub y: ValueId,
}

impl Joined {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<Joined> {
        let (Op::Concat { heads }, [a, b]) = (&node.op, &node.inputs[..]) else { return None };
        Some(Joined { node: node.id, a: *a, b: *b, heads: *heads, y: node.outputs[0] })
    }
}

/// [`Op::HeadMatMul`]: each head of x through a matrix of its own → y.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadProduct {
    /// The node.
    pub node: NodeId,
    /// The heads.
    pub x: ValueId,
    /// The matrices.
    pub weight: WeightSlice,
    /// Their rows meet elements of x.
    pub transposed: bool,
    /// The result.
    pub y: ValueId,
}

impl HeadProduct {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<HeadProduct> {
        let Op::HeadMatMul { weight, transposed } = &node.op else { return None };
        let (x, y) = (node.inputs[0], node.outputs[0]);
        Some(HeadProduct { node: node.id, x, weight: weight.clone(), transposed: *transposed, y })
    }
}

/// [`Op::PositionScale`]: x times a factor of its position → y.
#[derive(Debug, Clone, PartialEq)]
pub struct Tempered {
    /// The node.
    pub node: NodeId,
    /// What grows.
    pub x: ValueId,
    /// With these positions.
    pub positions: ValueId,
    /// How.
    pub attrs: PositionScaleAttrs,
    /// The result.
    pub y: ValueId,
}

impl Tempered {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<Tempered> {
        let (Op::PositionScale(attrs), [x, positions]) = (&node.op, &node.inputs[..]) else { return None };
        let (x, positions, y) = (*x, *positions, node.outputs[0]);
        Some(Tempered { node: node.id, x, positions, attrs: *attrs, y })
    }
}
