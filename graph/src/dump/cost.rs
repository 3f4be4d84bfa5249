//! What a node or a launch costs: bytes that must move, and floating-point operations.
//!
//! Bytes are the least that a device without a cache must move: each weight row, each stored value and each cached row
//! once. A value that never leaves its launch costs nothing; a single node is counted as if it were a launch of its own.
//! Experts are counted as uniform routing would choose them: of E experts, T tokens with K each are expected to read
//! E · (1 − (1 − K/E)^T), which is K for one token. Operations count a multiply-add as two and exp or a division as one.

use crate::ir::{AttentionAttrs, DType, Graph, Node, NodeId, Op, StepSizes, ValueId, WeightSlice};
use crate::passes::{Launch, Plan};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::ops::AddAssign;

/// The step that costs are stated for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CostOptions {
    /// T, R and S.
    pub sizes: StepSizes,
    /// Bytes of 32 cached elements: 64 for f16, 128 for f32, 34 for q8_0.
    pub kv_block_bytes: usize,
}

/// Traffic and work of one step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Weights read.
    pub weight_bytes: u64,
    /// Cached rows read.
    pub state_bytes: u64,
    /// Activations, ids and RoPE angles read.
    pub input_bytes: u64,
    /// Activations, ids and cached rows written.
    pub output_bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
}

impl Cost {
    /// All that is read.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.weight_bytes + self.state_bytes + self.input_bytes
    }

    /// All that moves.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.read_bytes() + self.output_bytes
    }

    /// The time that the bytes alone take.
    #[must_use]
    pub fn roofline_seconds(&self, bandwidth_bytes_per_s: f64) -> f64 {
        self.total_bytes() as f64 / bandwidth_bytes_per_s
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.weight_bytes += other.weight_bytes;
        self.state_bytes += other.state_bytes;
        self.input_bytes += other.input_bytes;
        self.output_bytes += other.output_bytes;
        self.flops += other.flops;
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), |mut sum, cost| {
            sum += cost;
            sum
        })
    }
}

/// The cost of one node run by itself. `is_read` says whether anything reads a value: what nothing reads is not written.
#[must_use]
pub fn node_cost(graph: &Graph, node: &Node, options: CostOptions, is_read: impl Fn(ValueId) -> bool) -> Cost {
    let mut cost = inner_cost(graph, node, options);
    let inputs: HashSet<ValueId> = node.inputs.iter().copied().collect();
    cost.input_bytes += inputs.into_iter().map(|v| bytes_read(graph, node, v, options)).sum::<u64>();
    cost.output_bytes +=
        node.outputs.iter().filter(|v| is_read(**v)).map(|v| value_bytes(graph, *v, options)).sum::<u64>();
    cost
}

/// The cost of a launch: its nodes' weights, states and work, and only those values that cross its border or a phase's.
#[must_use]
pub fn launch_cost(plan: &Plan, launch: &Launch, options: CostOptions) -> Cost {
    let graph = &plan.graph;
    let phase_of: HashMap<NodeId, usize> = launch
        .phases
        .iter()
        .enumerate()
        .flat_map(|(phase, nodes)| nodes.iter().map(move |n| (*n, phase)))
        .collect();
    let mut cost = Cost::default();
    // The largest part of a value that a phase reads, per phase.
    let mut reads: HashMap<(ValueId, usize), u64> = HashMap::new();
    for node in plan.launch_nodes(launch) {
        cost += inner_cost(graph, node, options);
        let phase = phase_of[&node.id];
        for input in &node.inputs {
            let made_in = graph.value(*input).producer.and_then(|p| phase_of.get(&p));
            if made_in != Some(&phase) {
                let bytes = reads.entry((*input, phase)).or_default();
                *bytes = bytes_read(graph, node, *input, options).max(*bytes);
            }
        }
        let stored = node.outputs.iter().filter(|v| plan.is_stored(**v));
        cost.output_bytes += stored.map(|v| value_bytes(graph, *v, options)).sum::<u64>();
    }
    cost.input_bytes += reads.values().sum::<u64>();
    cost
}

/// Weights, states and work: what a node costs wherever its operands live.
fn inner_cost(graph: &Graph, node: &Node, options: CostOptions) -> Cost {
    let StepSizes { tokens, cached, .. } = options.sizes;
    let out_elems = node.outputs.first().map_or(0, |v| graph.value(*v).shape.elems(options.sizes)) as u64;
    let vectors = |ids: Vec<crate::ir::WeightId>| -> u64 {
        ids.into_iter().map(|id| slice_bytes(graph, id, graph.weight(id).shape.iter().product(), 1)).sum()
    };
    let state_rows = |elems: usize, rows: usize| -> u64 {
        (elems as u64 * options.kv_block_bytes as u64).div_ceil(32) * rows as u64
    };
    let mut cost = Cost::default();
    match &node.op {
        Op::Embed { table } => {
            cost.weight_bytes = matrix_bytes(graph, table, tokens.min(table.rows.len()), 1);
        }
        Op::RmsNorm { .. } => {
            cost.weight_bytes = vectors(node.op.weights());
            cost.flops = 4 * out_elems;
        }
        Op::MatMul { weight, bias, scale } => {
            cost.weight_bytes =
                matrix_bytes(graph, weight, weight.rows.len(), 1) + vectors(bias.iter().copied().collect());
            let extra = u64::from(bias.is_some()) + u64::from(scale.is_some());
            cost.flops = out_elems * (2 * inner_elems(graph, weight) + extra);
        }
        Op::Rope { table, heads, .. } => {
            let dims = graph.rope_tables[table.index()].dims;
            cost.input_bytes = (tokens * dims * size_of::<f32>()) as u64;
            cost.flops = (3 * tokens * heads * dims) as u64;
        }
        Op::KvWrite { key, value } => {
            let states = [graph.state(*key), graph.state(*value)];
            cost.output_bytes = states.iter().map(|s| state_rows(s.row_elems(), tokens)).sum();
        }
        Op::Attention(a) => {
            let rows = a.window.map_or(cached, |w| cached.min(w + tokens - 1));
            cost.state_bytes = state_rows(a.num_key_value_heads * a.head_dim, rows)
                + state_rows(a.num_key_value_heads * a.value_head_dim, rows);
            cost.weight_bytes = vectors(node.op.weights());
            // q·k and p·v, and per score: scale, subtract the maximum, exp, divide.
            let per_score = (2 * a.head_dim + 2 * a.value_head_dim + 4) as u64;
            cost.flops = visible_scores(a, options.sizes) * per_score;
        }
        Op::AttentionScores(a) => {
            cost.state_bytes = state_rows(a.num_key_value_heads * a.head_dim, cached);
            cost.flops = visible_scores(a, options.sizes) * (2 * a.head_dim as u64 + 1);
        }
        Op::AttentionSoftmax(a) => {
            cost.weight_bytes = vectors(node.op.weights());
            cost.flops = visible_scores(a, options.sizes) * 3;
        }
        Op::Router(r) => {
            cost.weight_bytes = vectors(node.op.weights());
            // The gate (subtract, exp, divide) of every expert; renormalising and scaling of the chosen.
            cost.flops = (tokens * (3 * r.num_experts + 2 * r.num_experts_per_tok)) as u64;
        }
        Op::ExpertMatMul { weight, bias } => {
            let num_experts = weight.experts.as_ref().map_or(0, std::ops::Range::len);
            let k = graph.value(node.inputs[1]).shape.width().unwrap_or(1);
            let read = expected_experts(num_experts, k, tokens);
            cost.weight_bytes =
                (matrix_bytes(graph, weight, weight.rows.len(), num_experts) as f64 * read) as u64;
            if let Some(bias) = bias {
                cost.weight_bytes += (vectors(vec![*bias]) as f64 * read) as u64;
            }
            cost.flops = out_elems * (2 * inner_elems(graph, weight) + u64::from(bias.is_some()));
        }
        // silu: negate, exp, add, divide; times up.
        Op::GatedAct { .. } => cost.flops = 5 * out_elems,
        Op::ExpertCombine => {
            let k = graph.value(node.inputs[1]).shape.width().unwrap_or(1) as u64;
            cost.flops = 2 * k * out_elems;
        }
        Op::Add | Op::Mul => cost.flops = out_elems,
        Op::GetRows | Op::Tap { .. } => {}
    }
    cost
}

/// The share of E experts that T tokens with K distinct choices each are expected to need.
fn expected_experts(num_experts: usize, k: usize, tokens: usize) -> f64 {
    let missed_by_one = 1.0 - k as f64 / num_experts.max(1) as f64;
    1.0 - missed_by_one.powi(tokens.min(i32::MAX as usize) as i32)
}

/// Scores at or before their query, and inside the window: Σ over heads and tokens.
fn visible_scores(attrs: &AttentionAttrs, sizes: StepSizes) -> u64 {
    let first = (sizes.cached + 1).saturating_sub(sizes.tokens);
    let seen = (first..=sizes.cached).map(|n| n.min(attrs.window.unwrap_or(n)) as u64);
    attrs.num_attention_heads as u64 * seen.sum::<u64>()
}

fn matrix_bytes(graph: &Graph, slice: &WeightSlice, rows: usize, experts: usize) -> u64 {
    let inner = graph.weight(slice.tensor).shape.last().copied().unwrap_or(0);
    slice_bytes(graph, slice.tensor, inner, rows * experts)
}

fn slice_bytes(graph: &Graph, id: crate::ir::WeightId, row_elems: usize, rows: usize) -> u64 {
    graph.weight(id).format.row_bytes(row_elems).unwrap_or(0) as u64 * rows as u64
}

fn inner_elems(graph: &Graph, slice: &WeightSlice) -> u64 {
    graph.weight(slice.tensor).shape.last().copied().unwrap_or(0) as u64
}

/// What a node reads of one of its inputs: all of it, or the rows that it picks. States are counted with the op.
fn bytes_read(graph: &Graph, node: &Node, value: ValueId, options: CostOptions) -> u64 {
    if matches!(node.op, Op::GetRows) && node.inputs.first() == Some(&value) {
        return node.outputs.iter().map(|v| value_bytes(graph, *v, options)).sum();
    }
    value_bytes(graph, value, options)
}

fn value_bytes(graph: &Graph, value: ValueId, options: CostOptions) -> u64 {
    let value = graph.value(value);
    match value.dtype {
        DType::State => 0,
        DType::F32 | DType::U32 => (value.shape.elems(options.sizes) * size_of::<f32>()) as u64,
    }
}
