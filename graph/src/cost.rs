//! Beside stage 4: a plan and the sizes of a step → the bytes that it must move and the arithmetic that it must do.
//!
//! These are what the formulas demand, each byte moved once: a measured time set against them says how far from the
//! memory's limit a launch runs. Of a tensor of experts only those count that the step's tokens choose; which of them
//! coincide is not known before the step runs, so for several tokens the number is the one expected of even routing.
//! Absent on purpose: the devices' speeds, caches, and values that never leave their launch.

use crate::ir::{
    AttentionAttrs, CompressAttrs, CompressedAttentionAttrs, DType, DeltaRuleAttrs, Graph, IndexScoresAttrs,
    Node, Op, SsmScanAttrs, StepSizes, ValueId, WeightSlice,
};
use crate::passes::{Launch, Plan};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::iter::Sum;
use std::ops::{Add, AddAssign};

/// What a node, a launch or a step costs at least.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Weights read.
    pub weight_bytes: u64,
    /// Rows of states (the KV cache) read and written.
    pub state_bytes: u64,
    /// Values between launches, read and written.
    pub activation_bytes: u64,
    /// What of all these is written; the rest is read.
    pub written_bytes: u64,
    /// Additions and multiplications of the products (matmuls and attention); the rest is small beside them.
    pub flops: u64,
}

impl Cost {
    /// Everything that is moved.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.weight_bytes + self.state_bytes + self.activation_bytes
    }

    /// What is read.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.bytes() - self.written_bytes
    }

    /// The time that the bytes alone take.
    #[must_use]
    pub fn seconds_at(&self, bandwidth_bytes_per_s: f64) -> f64 {
        self.bytes() as f64 / bandwidth_bytes_per_s
    }

    /// What comes from memory however large the caches: weights and states.
    #[must_use]
    pub fn streamed_bytes(&self) -> u64 {
        self.weight_bytes + self.state_bytes
    }
}

impl Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost {
            weight_bytes: self.weight_bytes + other.weight_bytes,
            state_bytes: self.state_bytes + other.state_bytes,
            activation_bytes: self.activation_bytes + other.activation_bytes,
            written_bytes: self.written_bytes + other.written_bytes,
            flops: self.flops + other.flops,
        }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        *self = *self + other;
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), Add::add)
    }
}

/// The number of distinct experts that `tokens` tokens choose if each expert is as likely as any other:
/// E · (1 − (1 − K/E)^T). Exact for one token.
#[must_use]
pub fn distinct_experts(num_experts: usize, num_experts_per_tok: usize, tokens: usize) -> f64 {
    let (e, k) = (num_experts as f64, num_experts_per_tok as f64);
    e * (1.0 - (1.0 - k / e).powf(tokens as f64))
}

/// Weights, states and arithmetic of one node, wherever its operands live. `state_row_bytes` gives the bytes of a state's row of so many elements.
#[must_use]
pub fn node_cost(
    graph: &Graph,
    node: &Node,
    sizes: StepSizes,
    state_row_bytes: &dyn Fn(usize) -> usize,
) -> Cost {
    let elems = |i: usize| node.inputs.get(i).map_or(0, |v| graph.value(*v).shape.elems(sizes));
    let vectors_bytes = |weights: &[crate::ir::WeightId]| -> u64 {
        weights.iter().map(|w| graph.weight(*w).shape.iter().product::<usize>() as u64 * 4).sum()
    };
    match &node.op {
        Op::Embed { table, scale: _ } => {
            let weight_bytes = sizes.tokens as u64 * row_bytes(graph, table);
            Cost { weight_bytes, ..Cost::default() }
        }
        Op::MatMul { weight, bias, .. } => {
            let cols = cols(graph, weight);
            let x_rows = elems(0) / cols.max(1);
            if x_rows == 0 {
                return Cost::default();
            }
            let weight_bytes =
                weight.rows.len() as u64 * row_bytes(graph, weight) + bias.map_or(0, |b| vectors_bytes(&[b]));
            let flops = 2 * x_rows as u64 * cols as u64 * weight.rows.len() as u64;
            Cost { weight_bytes, flops, ..Cost::default() }
        }
        Op::HeadMatMul { weight, transposed: _ } => {
            let matrices = weight.experts.as_ref().map_or(0, ExactSizeIterator::len) * weight.rows.len();
            Cost {
                weight_bytes: matrices as u64 * row_bytes(graph, weight),
                flops: 2 * (sizes.tokens * matrices * cols(graph, weight)) as u64,
                ..Cost::default()
            }
        }
        Op::ExpertMatMul { weight, bias } => {
            let (pairs, cols) = (elems(1), cols(graph, weight));
            let shape = &graph.weight(weight.tensor).shape;
            let experts = weight.experts.as_ref().map_or(shape[0], ExactSizeIterator::len);
            let per_tok = pairs / sizes.tokens.max(1);
            let distinct = distinct_experts(experts, per_tok, sizes.tokens);
            let expert_bytes =
                weight.rows.len() as u64 * (row_bytes(graph, weight) + u64::from(bias.is_some()) * 4);
            Cost {
                weight_bytes: (distinct * expert_bytes as f64).round() as u64,
                flops: 2 * pairs as u64 * cols as u64 * weight.rows.len() as u64,
                ..Cost::default()
            }
        }
        Op::KvWrite { key, value } => {
            let row = |s| state_row_bytes(graph.state(s).row_elems()) as u64;
            let written = sizes.tokens as u64 * (row(*key) + value.map_or(0, row));
            Cost { state_bytes: written, written_bytes: written, ..Cost::default() }
        }
        Op::Attention(a) => {
            // Where values are parts of keys, both are one state.
            let states: HashSet<_> = node.inputs.iter().filter_map(|v| graph.value(*v).state).collect();
            let cached: u64 =
                states.into_iter().map(|s| state_row_bytes(graph.state(s).row_elems()) as u64).sum();
            Cost {
                state_bytes: visible_rows(a, sizes) * cached,
                flops: attention_flops(a, sizes),
                ..Cost::default()
            }
        }
        Op::AttentionScores(a) => {
            let row = graph.value(node.inputs[1]).state.map_or(0, |s| graph.state(s).row_elems());
            let state_bytes = visible_rows(a, sizes) * state_row_bytes(row) as u64;
            Cost { state_bytes, ..Cost::default() }
        }
        Op::IndexScores(IndexScoresAttrs { num_heads, head_dim }) => Cost {
            state_bytes: sizes.cached as u64 * state_row_bytes(*head_dim) as u64,
            flops: 2 * (sizes.tokens * sizes.cached * num_heads * head_dim) as u64,
            ..Cost::default()
        },
        Op::CausalConv(c) => {
            let (kernel, channels) = (graph.state(c.state).width + 1, graph.state(c.state).heads);
            // Of each sequence; the step's runs are not known here.
            let state = 4 * graph.state(c.state).row_elems() as u64;
            Cost {
                weight_bytes: vectors_bytes(&node.op.weights()),
                state_bytes: 2 * state,
                written_bytes: state,
                flops: 2 * (sizes.tokens * kernel * channels) as u64,
                ..Cost::default()
            }
        }
        Op::DeltaRule(DeltaRuleAttrs { state, .. }) | Op::SsmScan(SsmScanAttrs { state, .. }) => {
            let elems = graph.state(*state).row_elems() as u64;
            Cost {
                weight_bytes: vectors_bytes(&node.op.weights()),
                state_bytes: 8 * elems,
                written_bytes: 4 * elems,
                // To decay, to read, to add, to read again.
                flops: 7 * sizes.tokens as u64 * elems,
                ..Cost::default()
            }
        }
        Op::Compress(CompressAttrs { ratio, overlap: _, bias: _, state }) => {
            let state = 4 * graph.state(*state).row_elems() as u64;
            let brought = 4 * (elems(0) + elems(1)) as u64;
            Cost {
                weight_bytes: vectors_bytes(&node.op.weights()),
                // Each position's own, and once a window all of it.
                state_bytes: brought + state * (sizes.tokens / (*ratio).max(1)) as u64,
                written_bytes: brought,
                ..Cost::default()
            }
        }
        Op::CompressedAttention(a) => {
            let CompressedAttentionAttrs { num_attention_heads, head_dim, .. } = a;
            let last = sizes.cached.saturating_sub(1);
            let first = sizes.cached.saturating_sub(sizes.tokens);
            let near = a.near(last).end - a.near(first).start.min(a.near(last).end);
            let pairs: usize = (first..sizes.cached).map(|p| a.near(p).len() + a.entries(p)).sum();
            Cost {
                weight_bytes: vectors_bytes(&node.op.weights()),
                state_bytes: ((near + a.entries(last)) * state_row_bytes(*head_dim)) as u64,
                flops: 4 * (pairs * num_attention_heads * head_dim) as u64,
                ..Cost::default()
            }
        }
        // The table of given experts is looked up, a row a token.
        Op::GivenExperts(g) => Cost {
            weight_bytes: g.table.map_or(0, |table| {
                (sizes.tokens * graph.weight(table).shape.last().copied().unwrap_or(0) * 4) as u64
            }),
            ..Cost::default()
        },
        Op::RmsNorm { .. }
        | Op::LayerNorm { .. }
        | Op::PositionScale(_)
        | Op::HyperGates(_)
        | Op::HyperConnect { .. }
        | Op::MulHeads
        | Op::Rope { .. }
        | Op::AttentionSoftmax(_)
        | Op::IndexSelect { .. }
        | Op::Router(_)
        | Op::GatedAct { .. }
        | Op::ExpertCombine
        | Op::DeltaGates { .. }
        | Op::Add
        | Op::Mul
        | Op::Pointwise { .. }
        | Op::Concat { .. }
        | Op::Slice { .. }
        | Op::GetRows
        | Op::Tap { .. } => Cost { weight_bytes: vectors_bytes(&node.op.weights()), ..Cost::default() },
    }
}

/// A launch: its nodes, and the values that it takes from other launches and leaves for them.
#[must_use]
pub fn launch_cost(
    plan: &Plan,
    launch: &Launch,
    sizes: StepSizes,
    state_row_bytes: &dyn Fn(usize) -> usize,
) -> Cost {
    let nodes: Vec<&Node> = plan.launch_nodes(launch).collect();
    group_cost(&plan.graph, &nodes, sizes, state_row_bytes, |v| plan.is_stored(v))
}

/// A node as if it were a launch of its own, its operands read from memory. `is_read` says whether anything reads a
/// value: a result that nothing reads is not written.
#[must_use]
pub fn lone_node_cost(
    graph: &Graph,
    node: &Node,
    sizes: StepSizes,
    state_row_bytes: &dyn Fn(usize) -> usize,
    is_read: impl Fn(ValueId) -> bool,
) -> Cost {
    group_cost(graph, &[node], sizes, state_row_bytes, is_read)
}

/// Nodes that share what they read and keep among themselves what is not `stored`.
fn group_cost(
    graph: &Graph,
    nodes: &[&Node],
    sizes: StepSizes,
    state_row_bytes: &dyn Fn(usize) -> usize,
    stored: impl Fn(ValueId) -> bool,
) -> Cost {
    let bytes = |v: ValueId| match graph.value(v).dtype {
        DType::State => 0,
        DType::F32 | DType::U32 => graph.value(v).shape.elems(sizes) as u64 * 4,
    };
    let mut cost: Cost = nodes.iter().map(|n| node_cost(graph, n, sizes, state_row_bytes)).sum();
    let made: HashSet<ValueId> = nodes.iter().flat_map(|n| n.outputs.iter().copied()).collect();
    let mut reads: HashMap<ValueId, u64> = HashMap::new();
    for node in nodes {
        for (i, value) in node.inputs.iter().enumerate().filter(|(_, v)| !made.contains(v)) {
            // Of the rows that it picks from, GetRows reads those that it picks.
            let picks = matches!(node.op, Op::GetRows) && i == 0;
            let read_bytes = bytes(if picks { node.outputs[0] } else { *value });
            let known = reads.entry(*value).or_default();
            *known = read_bytes.max(*known);
        }
    }
    let written_bytes: u64 = made.into_iter().filter(|v| stored(*v)).map(bytes).sum();
    cost.activation_bytes += reads.values().sum::<u64>() + written_bytes;
    cost.written_bytes += written_bytes;
    cost
}

/// A step: every launch that feeds the outputs.
#[must_use]
pub fn step_cost(plan: &Plan, sizes: StepSizes, state_row_bytes: &dyn Fn(usize) -> usize) -> Cost {
    let production = plan.launches.iter().filter(|l| !l.recomputed);
    production.map(|l| launch_cost(plan, l, sizes, state_row_bytes)).sum()
}

fn cols(graph: &Graph, slice: &WeightSlice) -> usize {
    graph.weight(slice.tensor).shape.last().copied().unwrap_or(0)
}

fn row_bytes(graph: &Graph, slice: &WeightSlice) -> u64 {
    graph.weight(slice.tensor).format.row_bytes(cols(graph, slice)).unwrap_or(0) as u64
}

/// Cached rows that some query of the step sees.
fn visible_rows(a: &AttentionAttrs, sizes: StepSizes) -> u64 {
    let first = a.first_visible(sizes.cached.saturating_sub(sizes.tokens));
    (sizes.cached - first.min(sizes.cached)) as u64
}

/// q·kᵀ and softmax·v over the pairs of query and visible position: query t of T sees S − T + 1 + t of them.
fn attention_flops(a: &AttentionAttrs, sizes: StepSizes) -> u64 {
    let first = sizes.cached.saturating_sub(sizes.tokens) + 1;
    let pairs: usize = (first..).take(sizes.tokens).map(|end| end - a.first_visible(end - 1)).sum();
    2 * pairs as u64 * a.num_attention_heads as u64 * (a.head_dim + a.value_head_dim) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_chooses_its_experts_and_many_choose_all() {
        assert!((distinct_experts(128, 8, 1) - 8.0).abs() < 1e-9);
        let two = distinct_experts(128, 8, 2);
        assert!((two - (16.0 - 0.5)).abs() < 1e-9, "{two}");
        assert!(distinct_experts(128, 8, 512) > 127.9);
    }

    #[test]
    fn queries_see_what_causality_and_the_window_leave() {
        let attrs = |window| AttentionAttrs {
            num_attention_heads: 1,
            num_key_value_heads: 1,
            head_dim: 1,
            value_head_dim: 1,
            scale: 1.0,
            window,
            chunk: None,
            soft_cap: None,
            sinks: None,
            value_in_key: false,
            masked: false,
        };
        // Three queries behind four cached rows see 5, 6 and 7 positions: 18 pairs, two products of 2 operations.
        let sizes = StepSizes { tokens: 3, logits_rows: 1, cached: 7 };
        assert_eq!(attention_flops(&attrs(None), sizes), 4 * 18);
        assert_eq!(attention_flops(&attrs(Some(2)), sizes), 4 * 6);
        assert_eq!(visible_rows(&attrs(None), sizes), 7);
        assert_eq!(visible_rows(&attrs(Some(2)), sizes), 4);
    }
}
