//! What groups are made of: one node each, taken apart. Every attribute of the op is there.

mod heads;
mod recurrent;

pub use heads::{HeadProduct, Joined, Sliced, Tempered};
pub use recurrent::{DeltaGated, DeltaRuled};

use crate::ir::{
    ActivationFn, AttentionAttrs, Graph, Node, NodeId, Op, PointwiseFn, RopePairing, RopeTableId,
    RouterAttrs, StateId, ValueId, WeightId, WeightSlice,
};

/// [`Op::RmsNorm`]: x → y.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// The node.
    pub node: NodeId,
    /// What is normed.
    pub x: ValueId,
    /// `[width]`, `[d]` or a part for each head, F32; `None`: 1.
    pub weight: Option<WeightId>,
    /// Added to the mean square.
    pub eps: f32,
    /// Heads that are normed each by itself; 1: the whole row.
    pub heads: usize,
    /// The result.
    pub y: ValueId,
}

impl Norm {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<Norm> {
        let Op::RmsNorm { weight, eps, heads } = node.op else { return None };
        Some(Norm { node: node.id, x: node.inputs[0], weight, eps, heads, y: node.outputs[0] })
    }

    /// The weight, if there is one and all heads share it.
    #[must_use]
    pub fn shared_weight(&self, graph: &Graph) -> Option<WeightId> {
        let width = graph.value(self.x).shape.width()?;
        let elems = |id: &WeightId| graph.weight(*id).shape.iter().product::<usize>();
        self.weight.filter(|id| elems(id) * self.heads == width)
    }
}

/// What a norm of whole rows does beside dividing by a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowNormKind {
    /// Nothing: RMSNorm.
    Rms,
    /// It takes the mean off first: LayerNorm.
    Layer {
        /// Added at the end, `[width]`, F32.
        bias: Option<WeightId>,
    },
}

/// [`Op::RmsNorm`] over one head, or [`Op::LayerNorm`]: x → y.
#[derive(Debug, Clone, PartialEq)]
pub struct RowNorm {
    /// The node.
    pub node: NodeId,
    /// What is normed.
    pub x: ValueId,
    /// `[width]`, F32; `None`: 1.
    pub weight: Option<WeightId>,
    /// Added to the mean square, or to the variance.
    pub eps: f32,
    /// Which of the two.
    pub kind: RowNormKind,
    /// The result.
    pub y: ValueId,
}

impl RowNorm {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<RowNorm> {
        let (weight, eps, kind) = match node.op {
            Op::RmsNorm { weight, eps, heads: 1 } => (weight, eps, RowNormKind::Rms),
            Op::LayerNorm { weight, bias, eps } => (Some(weight), eps, RowNormKind::Layer { bias }),
            _ => return None,
        };
        Some(RowNorm { node: node.id, x: node.inputs[0], weight, eps, kind, y: node.outputs[0] })
    }
}

/// [`Op::MatMul`]: x → y.
#[derive(Debug, Clone, PartialEq)]
pub struct Product {
    /// The node.
    pub node: NodeId,
    /// The activations.
    pub x: ValueId,
    /// The matrix.
    pub weight: WeightSlice,
    /// `[out]`, F32.
    pub bias: Option<WeightId>,
    /// Multiplies the product, before the bias.
    pub scale: Option<f32>,
    /// The result.
    pub y: ValueId,
}

impl Product {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<Product> {
        let Op::MatMul { weight, bias, scale } = &node.op else { return None };
        let (x, y) = (node.inputs[0], node.outputs[0]);
        Some(Product { node: node.id, x, weight: weight.clone(), bias: *bias, scale: *scale, y })
    }
}

/// [`Op::Pointwise`] within bounds: x → min(max(x, −limit), limit).
#[derive(Debug, Clone, PartialEq)]
pub struct Clamped {
    /// The node.
    pub node: NodeId,
    /// What is bounded.
    pub x: ValueId,
    /// The bound.
    pub limit: f32,
    /// The result.
    pub y: ValueId,
}

impl Clamped {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<Clamped> {
        let Op::Pointwise { function: PointwiseFn::Clamp(limit) } = node.op else { return None };
        Some(Clamped { node: node.id, x: node.inputs[0], limit, y: node.outputs[0] })
    }
}

/// [`Op::Pointwise`] times a number: x → factor · x.
#[derive(Debug, Clone, PartialEq)]
pub struct Scaled {
    /// The node.
    pub node: NodeId,
    /// What is multiplied.
    pub x: ValueId,
    /// The number.
    pub factor: f32,
    /// The result.
    pub y: ValueId,
}

impl Scaled {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<Scaled> {
        let Op::Pointwise { function: PointwiseFn::Scale(factor) } = node.op else { return None };
        Some(Scaled { node: node.id, x: node.inputs[0], factor, y: node.outputs[0] })
    }
}

/// [`Op::MulHeads`]: x, factors → y.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadsScaled {
    /// The node.
    pub node: NodeId,
    /// The heads.
    pub x: ValueId,
    /// A number for each.
    pub factors: ValueId,
    /// The result.
    pub y: ValueId,
}

impl HeadsScaled {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<HeadsScaled> {
        let (Op::MulHeads, [x, factors]) = (&node.op, &node.inputs[..]) else { return None };
        Some(HeadsScaled { node: node.id, x: *x, factors: *factors, y: node.outputs[0] })
    }
}

/// [`Op::ExpertMatMul`]: x, ids → y.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertProduct {
    /// The node.
    pub node: NodeId,
    /// The activations, a row for each token or for each of its experts.
    pub x: ValueId,
    /// The chosen experts.
    pub ids: ValueId,
    /// The matrices.
    pub weight: WeightSlice,
    /// `[E, out]`, F32.
    pub bias: Option<WeightId>,
    /// The result.
    pub y: ValueId,
}

impl ExpertProduct {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<ExpertProduct> {
        let Op::ExpertMatMul { weight, bias } = &node.op else { return None };
        let [x, ids] = node.inputs[..] else { return None };
        Some(ExpertProduct { node: node.id, x, ids, weight: weight.clone(), bias: *bias, y: node.outputs[0] })
    }
}

/// [`Op::GatedAct`]: gate, up → act(gate), and what both make.
#[derive(Debug, Clone, PartialEq)]
pub struct Gated {
    /// The node.
    pub node: NodeId,
    /// What goes through the function.
    pub gate: ValueId,
    /// What it lets through.
    pub up: ValueId,
    /// The function.
    pub activation: ActivationFn,
    /// act(gate).
    pub activated: ValueId,
    /// The result.
    pub y: ValueId,
}

impl Gated {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<Gated> {
        let Op::GatedAct { activation } = node.op else { return None };
        let ([gate, up], [activated, y]) = (&node.inputs[..], &node.outputs[..]) else { return None };
        Some(Gated { node: node.id, gate: *gate, up: *up, activation, activated: *activated, y: *y })
    }
}

/// [`Op::Router`]: logits → ids and weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// The node.
    pub node: NodeId,
    /// `[T, E]`.
    pub logits: ValueId,
    /// How experts are chosen and weighed.
    pub attrs: RouterAttrs,
    /// The chosen experts.
    pub ids: ValueId,
    /// Their weights.
    pub weights: ValueId,
}

impl Routing {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<Routing> {
        let (Op::Router(attrs), [ids, weights]) = (&node.op, &node.outputs[..]) else { return None };
        let logits = node.inputs[0];
        Some(Routing { node: node.id, logits, attrs: attrs.clone(), ids: *ids, weights: *weights })
    }
}

/// [`Op::ExpertCombine`]: x, weights → Σ weight · x.
#[derive(Debug, Clone, PartialEq)]
pub struct Combined {
    /// The node.
    pub node: NodeId,
    /// Each expert's output.
    pub x: ValueId,
    /// Their weights.
    pub weights: ValueId,
    /// The sum.
    pub y: ValueId,
}

impl Combined {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<Combined> {
        let (Op::ExpertCombine, [x, weights]) = (&node.op, &node.inputs[..]) else { return None };
        Some(Combined { node: node.id, x: *x, weights: *weights, y: node.outputs[0] })
    }
}

/// [`Op::Add`] of a value and another.
#[derive(Debug, Clone, PartialEq)]
pub struct Sum {
    /// The node.
    pub node: NodeId,
    /// What is added to the value that the group makes.
    pub other: ValueId,
    /// The result.
    pub y: ValueId,
}

impl Sum {
    /// The part, if the node adds something else to `value`.
    #[must_use]
    pub fn of(node: &Node, value: ValueId) -> Option<Sum> {
        let Op::Add = node.op else { return None };
        let other = match node.inputs[..] {
            [a, b] if a == value && b != value => b,
            [a, b] if b == value && a != value => a,
            _ => return None,
        };
        Some(Sum { node: node.id, other, y: node.outputs[0] })
    }
}

/// [`Op::Rope`]: x, positions → y.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotated {
    /// The node.
    pub node: NodeId,
    /// What is rotated.
    pub x: ValueId,
    /// By these positions.
    pub positions: ValueId,
    /// cos and sin.
    pub table: RopeTableId,
    /// Which two elements are a pair.
    pub pairing: RopePairing,
    /// Heads in the row.
    pub heads: usize,
    /// The result.
    pub y: ValueId,
}

impl Rotated {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<Rotated> {
        let (Op::Rope { table, pairing, heads }, [x, positions]) = (&node.op, &node.inputs[..]) else {
            return None;
        };
        let (x, positions, y) = (*x, *positions, node.outputs[0]);
        Some(Rotated { node: node.id, x, positions, table: *table, pairing: *pairing, heads: *heads, y })
    }
}

/// [`Op::KvWrite`]: k, v, slots → the two states.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// The node.
    pub node: NodeId,
    /// The keys.
    pub k: ValueId,
    /// The values; `None` where they are parts of the keys.
    pub v: Option<ValueId>,
    /// Where they go.
    pub slots: ValueId,
    /// The keys' state.
    pub key: StateId,
    /// The values' state, where they have one.
    pub value: Option<StateId>,
    /// The two states as values of the graph; where values are parts of keys, the keys' twice.
    pub states: [ValueId; 2],
}

impl Written {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<Written> {
        let Op::KvWrite { key, value } = node.op else { return None };
        let (k, v, slots) = match node.inputs[..] {
            [k, v, slots] => (k, Some(v), slots),
            [k, slots] => (k, None, slots),
            _ => return None,
        };
        let states = [*node.outputs.first()?, *node.outputs.last()?];
        Some(Written { node: node.id, k, v, slots, key, value, states })
    }
}

/// [`Op::Attention`]: q and the two states → y.
#[derive(Debug, Clone, PartialEq)]
pub struct Attended {
    /// The node.
    pub node: NodeId,
    /// The queries.
    pub q: ValueId,
    /// The two states.
    pub states: [ValueId; 2],
    /// The queries' positions.
    pub positions: ValueId,
    /// The sequences that the queries belong to.
    pub sequence: ValueId,
    /// Heads, mask, scores.
    pub attrs: AttentionAttrs,
    /// The result.
    pub y: ValueId,
}

impl Attended {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<Attended> {
        let (Op::Attention(attrs), [q, keys, values, positions, sequence]) = (&node.op, &node.inputs[..])
        else {
            return None;
        };
        Some(Attended {
            node: node.id,
            q: *q,
            states: [*keys, *values],
            positions: *positions,
            sequence: *sequence,
            attrs: attrs.clone(),
            y: node.outputs[0],
        })
    }
}

/// [`Op::GetRows`]: x, rows → y.
#[derive(Debug, Clone, PartialEq)]
pub struct Picked {
    /// The node.
    pub node: NodeId,
    /// All rows.
    pub x: ValueId,
    /// Which of them.
    pub rows: ValueId,
    /// Those.
    pub y: ValueId,
}

impl Picked {
    /// The part, if the node is one.
    #[must_use]
    pub fn of(node: &Node) -> Option<Picked> {
        let (Op::GetRows, [x, rows]) = (&node.op, &node.inputs[..]) else { return None };
        Some(Picked { node: node.id, x: *x, rows: *rows, y: node.outputs[0] })
    }
}
