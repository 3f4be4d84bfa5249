//! Faults on purpose: exactly one operation of one layer is made wrong, so that tests can require that parity names it.
//!
//! Three ways, all of which work on any backend: the lowered graph is altered before it is compiled (RoPE, renormalising),
//! a weight's bytes are altered where they are read (a scale nibble), or a hook between launches puts in place of an op's
//! output what the broken op would have given. The hook runs behind the replacing of inputs by a forced run. Compiled
//! only with the feature `fault-injection`.

use crate::error::BackendError;
use crate::executable::{HostTensor, Observer, TensorData, ValueAccess, WeightSource};
use moe_run_graph::ir::{AttentionAttrs, Graph, Node, Op, RopePairing, RopeSpec};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::Format;
use std::sync::Arc;
use std::time::Duration;

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The best expert's output is left out of the weighted sum.
    DroppedExpert,
    /// down_proj takes another expert than the router chose.
    WrongExpert,
    /// Every chosen expert gets the weight 1/K.
    UniformRouterWeights,
    /// The chosen weights are not divided by their sum.
    NoRenormalising,
    /// The per-head norm of q is skipped.
    SkippedQNorm,
    /// The per-head norm of k is skipped.
    SkippedKNorm,
    /// RoPE's base is 100 more than the model's, for q.
    RopeBase,
    /// The other pairing, for q.
    RopePairing,
    /// Two nibbles of a scale are swapped in one block of o_proj.
    SwappedScaleNibble,
    /// The residual stream is added twice behind the experts.
    ResidualTwice,
    /// A query does not see its own position.
    CausalOffByOne,
    /// One lane of the norm before attention is NaN.
    NanLane,
}

impl Fault {
    /// All of them.
    pub const ALL: &'static [Fault] = &[
        Fault::DroppedExpert,
        Fault::WrongExpert,
        Fault::UniformRouterWeights,
        Fault::NoRenormalising,
        Fault::SkippedQNorm,
        Fault::SkippedKNorm,
        Fault::RopeBase,
        Fault::RopePairing,
        Fault::SwappedScaleNibble,
        Fault::ResidualTwice,
        Fault::CausalOffByOne,
        Fault::NanLane,
    ];

    /// The node that is made wrong.
    #[must_use]
    pub fn node_name(self) -> &'static str {
        match self {
            Fault::DroppedExpert => "combine",
            Fault::WrongExpert => "down_proj",
            Fault::UniformRouterWeights | Fault::NoRenormalising => "router_topk",
            Fault::SkippedQNorm => "q_norm",
            Fault::SkippedKNorm => "k_norm",
            Fault::RopeBase | Fault::RopePairing => "q_rope",
            Fault::SwappedScaleNibble => "o_proj",
            Fault::ResidualTwice => "ffn_residual",
            Fault::CausalOffByOne => "attention",
            Fault::NanLane => "attn_norm",
        }
    }

    /// Breaks this in one layer of a graph; `None` where the model has no such op there.
    #[must_use]
    pub fn inject(self, graph: &Graph, weights: &Arc<dyn WeightSource>, layer: usize) -> Option<Injected> {
        let mut graph = graph.clone();
        let at = graph
            .nodes
            .iter()
            .position(|n| n.name == self.node_name() && n.layer.is_some_and(|l| l.index() == layer))?;
        let mut weights = Arc::clone(weights);
        match self {
            Fault::NoRenormalising => {
                let Op::Router(attrs) = &mut graph.nodes[at].op else { return None };
                attrs.norm_topk_prob = false;
            }
            Fault::RopePairing => {
                let Op::Rope { pairing, .. } = &mut graph.nodes[at].op else { return None };
                *pairing = match pairing {
                    RopePairing::Half => RopePairing::Interleaved,
                    RopePairing::Interleaved => RopePairing::Half,
                };
            }
            Fault::RopeBase => {
                let Op::Rope { table, .. } = graph.nodes[at].op else { return None };
                let spec = graph.rope_tables[table.index()];
                let moved = graph.add_rope_table(RopeSpec { theta: spec.theta + 100.0, ..spec });
                let Op::Rope { table, .. } = &mut graph.nodes[at].op else { return None };
                *table = moved;
            }
            Fault::SwappedScaleNibble => {
                let Op::MatMul { weight, .. } = &graph.nodes[at].op else { return None };
                let decl = graph.weight(weight.tensor);
                let mut bytes = weights.bytes(&decl.name)?.to_vec();
                swap_scale_nibble(decl.format, &mut bytes)?;
                let name = decl.name.clone();
                weights = Arc::new(Overlay { base: weights, name, bytes });
            }
            _ => {}
        }
        Some(Injected { graph, weights, hook: Hook { fault: self, layer } })
    }
}

/// One side of a comparison, broken.
pub struct Injected {
    /// The graph to compile.
    pub graph: Graph,
    /// The weights to compile it with.
    pub weights: Arc<dyn WeightSource>,
    /// Goes between replacing and comparing.
    pub hook: Hook,
}

/// Weights with one tensor altered.
struct Overlay {
    base: Arc<dyn WeightSource>,
    name: String,
    bytes: Vec<u8>,
}

impl WeightSource for Overlay {
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        if name == self.name { Some(&self.bytes) } else { self.base.bytes(name) }
    }
}

/// Swaps the nibbles of the first scale byte whose nibbles differ, in the first block that has one.
fn swap_scale_nibble(format: Format, bytes: &mut [u8]) -> Option<()> {
    // Where a block keeps bytes that decide its scales.
    let scales = match format {
        Format::Q4K | Format::Q5K => 4..16,
        Format::Q6K => 192..208,
        Format::Q3K => 96..108,
        Format::Q2K => 0..16,
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 | Format::Q4_1 | Format::Q5_1 | Format::Iq4Nl => 0..1,
        Format::Iq4Xs => 4..8,
        _ => return None,
    };
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        for byte in &mut block[scales.clone()] {
            if *byte >> 4 != *byte & 15 {
                *byte = byte.rotate_left(4);
                return Some(());
            }
        }
    }
    None
}

/// Puts wrong outputs in place.
#[derive(Debug, Clone, Copy)]
pub struct Hook {
    fault: Fault,
    layer: usize,
}

impl Observer for Hook {
    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        _elapsed: Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        for node in plan.launch_nodes(launch) {
            let here = node.layer.is_some_and(|l| l.index() == self.layer);
            if here && node.name == self.fault.node_name() {
                self.corrupt(plan, node, values)?;
            }
        }
        Ok(())
    }
}

impl Hook {
    fn corrupt(&self, plan: &Plan, node: &Node, values: &mut dyn ValueAccess) -> Result<(), BackendError> {
        let input = |values: &mut dyn ValueAccess, i: usize| values.read(node.inputs[i]);
        match (self.fault, &node.op) {
            (Fault::DroppedExpert, Op::ExpertCombine) => {
                let (y, w) = (input(values, 0)?, input(values, 1)?);
                let [tokens, per_tok, width] = y.shape[..] else { return Ok(()) };
                let (y, w) = (y.data.to_f32(), w.data.to_f32());
                edit(values, node, 0, |out| {
                    for t in 0..tokens {
                        let weight = w[t * per_tok];
                        for c in 0..width {
                            out[t * width + c] -= weight * y[t * per_tok * width + c];
                        }
                    }
                })
            }
            (Fault::WrongExpert, Op::ExpertMatMul { .. }) => {
                // What the token's second expert gave stands for what another expert gives.
                let ids = input(values, 1)?;
                let per_tok = ids.shape.last().copied().unwrap_or(1);
                edit(values, node, 0, |out| {
                    let width = out.len() / ids.data.len().max(1);
                    for row in out.chunks_exact_mut(per_tok * width) {
                        if let [best, second, ..] =
                            row.chunks_exact_mut(width).collect::<Vec<_>>().as_mut_slice()
                        {
                            best.copy_from_slice(second);
                        }
                    }
                })
            }
            (Fault::UniformRouterWeights, Op::Router(attrs)) => {
                let weight = 1.0 / attrs.num_experts_per_tok as f32;
                edit(values, node, 1, |out| out.fill(weight))
            }
            (Fault::SkippedQNorm | Fault::SkippedKNorm, Op::RmsNorm { .. }) => {
                let x = input(values, 0)?;
                values.write(node.outputs[0], &x)
            }
            (Fault::ResidualTwice, Op::Add) => {
                let x = input(values, 0)?.data.to_f32();
                edit(values, node, 0, |out| out.iter_mut().zip(&x).for_each(|(o, x)| *o += x))
            }
            (Fault::NanLane, Op::RmsNorm { .. }) => edit(values, node, 0, |out| {
                if let Some(lane) = out.last_mut() {
                    *lane = f32::NAN;
                }
            }),
            (Fault::CausalOffByOne, Op::Attention(attrs)) => {
                let q = input(values, 0)?.data.to_f32();
                let sizes = values.sizes();
                let mut rows = [Vec::new(), Vec::new()];
                for (i, rows) in rows.iter_mut().enumerate() {
                    if let Some(state) = plan.graph.value(node.inputs[1 + i]).state {
                        *rows = values.read_state(state, 0..sizes.cached)?;
                    }
                }
                let first = sizes.cached - sizes.tokens;
                edit(values, node, 0, |out| {
                    let width = attrs.num_attention_heads * attrs.value_head_dim;
                    for (t, out) in out.chunks_exact_mut(width).enumerate() {
                        // The first position has nothing else to see.
                        let seen = (first + t).max(1);
                        attend(attrs, &q[t * attrs.num_attention_heads * attrs.head_dim..], &rows, seen, out);
                    }
                })
            }
            _ => Ok(()),
        }
    }
}

/// Reads an output, lets it be altered, and writes it back.
fn edit(
    values: &mut dyn ValueAccess,
    node: &Node,
    output: usize,
    alter: impl FnOnce(&mut [f32]),
) -> Result<(), BackendError> {
    let tensor = values.read(node.outputs[output])?;
    let mut data = tensor.data.to_f32();
    alter(&mut data);
    values.write(node.outputs[output], &HostTensor { shape: tensor.shape, data: TensorData::F32(data) })
}

/// One query over the first `seen` cached positions.
fn attend(attrs: &AttentionAttrs, q: &[f32], [keys, cached]: &[Vec<f32>; 2], seen: usize, out: &mut [f32]) {
    let (d, dv, groups) = (attrs.head_dim, attrs.value_head_dim, attrs.num_key_value_heads);
    for head in 0..attrs.num_attention_heads {
        let (group, q) = (head / attrs.group_size(), &q[head * d..(head + 1) * d]);
        let score = |s: usize| -> f64 {
            let k = &keys[(s * groups + group) * d..(s * groups + group + 1) * d];
            let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
            dot * f64::from(attrs.scale)
        };
        let scores: Vec<f64> = (0..seen).map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        for lane in 0..dv {
            let weighted = |(s, x): (usize, &f64)| {
                (x - max).exp() / sum * f64::from(cached[(s * groups + group) * dv + lane])
            };
            out[head * dv + lane] = scores.iter().enumerate().map(weighted).sum::<f64>() as f32;
        }
    }
}
