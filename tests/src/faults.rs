//! Faults on purpose: exactly one operation of one layer is made wrong, so that tests can require that parity names it.
//!
//! Most faults are compiled in: the lowered graph or a weight's bytes are altered, and the backend's own kernels, groups
//! included, compute with that. Those that no attribute and no weight can express (a dropped expert, uniform router
//! weights, a selection bias that counts as weight, a residual added twice, the causal mask) are put in place by a hook
//! between launches: the op's output becomes what the broken op would have given, and what later nodes of the same launch
//! made of it is made again. A hook that cannot do that refuses, so that no fault stays without its consequences. A state
//! that is lost is emptied in front of the launch that reads it. The hook runs behind the replacing of inputs by a forced
//! run. It lives in the tests: production code has none of its own.

use moe_run_backends::error::BackendError;
use moe_run_backends::executable::{HostTensor, Observer, TensorData, ValueAccess, WeightSource};
use moe_run_graph::ir::{
    ActivationFn, AttentionAttrs, GateKind, Graph, Node, Op, RopePairing, RopeSpec, ValueId, WeightDecl,
};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::Format;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The best expert's output is left out of the weighted sum.
    DroppedExpert,
    /// down_proj takes the next expert where the router chose a certain one.
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
    /// The scores lack the factor by which YaRN stretches them.
    UnstretchedScores,
    /// Experts are chosen from all groups.
    GroupsIgnored,
    /// The part of each query head that is not rotated is taken for the one that is.
    WrongPartOfHeads,
    /// A recurrent layer's convolution takes its inputs in the reverse order.
    ReversedConvolution,
    /// The shared expert counts whole, whatever its gate says.
    SkippedSharedGate,
    /// What a head's softmax leaves to its sink is left to the keys.
    SinkLeftOut,
    /// A window sees one position less.
    WindowOffByOne,
    /// The bias of the choice counts in the weights of the experts as well.
    SelectionBiasInWeights,
    /// What attention adds to the residual stream is not scaled.
    SkippedResidualScale,
    /// The delta rule begins every step with an empty state.
    DeltaStateLost,
    /// Mamba2's scan begins every step with an empty state.
    ScanStateLost,
    /// A convolution begins every step with nothing before it.
    ConvStateLost,
    /// A window's positions of earlier steps are lost.
    WindowStateLost,
    /// What RoPE turned in the values stays turned.
    NotTurnedBack,
    /// An entry turns as the position that completes it.
    EntryTurnedAsItsLast,
    /// A limit bounds what comes out of silu.
    LimitBehindSilu,
    /// An indexer chooses one entry less.
    ChoiceOffByOne,
}

impl Fault {
    /// Those of models with recurrent layers and a shared expert.
    pub const HYBRID: &'static [Fault] = &[Fault::ReversedConvolution, Fault::SkippedSharedGate];

    /// Those of models with attention and experts.
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

    /// Those of latent attention and of experts in groups, which other models have no ops for.
    pub const LATENT: &'static [Fault] =
        &[Fault::UnstretchedScores, Fault::GroupsIgnored, Fault::WrongPartOfHeads, Fault::CausalOffByOne];

    /// Those of states that a step takes over from the one before: they show where there is more than one.
    pub const CARRIED: &'static [Fault] = &[Fault::DeltaStateLost, Fault::ConvStateLost];

    /// Those of attention with sinks and windows.
    pub const SINKS: &'static [Fault] = &[Fault::SinkLeftOut, Fault::WindowOffByOne];

    /// Those of compressed attention, in layers with an indexer.
    pub const COMPRESSED: &'static [Fault] = &[
        Fault::SinkLeftOut,
        Fault::WindowOffByOne,
        Fault::NotTurnedBack,
        Fault::EntryTurnedAsItsLast,
        Fault::ChoiceOffByOne,
        Fault::LimitBehindSilu,
    ];

    /// The node that is made wrong.
    #[must_use]
    pub fn node_name(self) -> &'static str {
        match self {
            Fault::DroppedExpert => "combine",
            Fault::WrongExpert => "down_proj",
            Fault::UniformRouterWeights
            | Fault::NoRenormalising
            | Fault::GroupsIgnored
            | Fault::SelectionBiasInWeights => "router_topk",
            Fault::SkippedQNorm => "q_norm",
            Fault::SkippedKNorm => "k_norm",
            Fault::RopeBase | Fault::RopePairing => "q_rope",
            Fault::SwappedScaleNibble | Fault::SkippedResidualScale => "o_proj",
            Fault::ResidualTwice => "ffn_residual",
            Fault::CausalOffByOne | Fault::UnstretchedScores | Fault::SinkLeftOut | Fault::WindowOffByOne => {
                "attention"
            }
            Fault::WrongPartOfHeads => "q_pe",
            Fault::NanLane => "attn_norm",
            Fault::ReversedConvolution | Fault::ConvStateLost => "conv",
            Fault::WindowStateLost => "compress",
            Fault::NotTurnedBack => "o_rope_back",
            Fault::EntryTurnedAsItsLast => "entry_rope",
            Fault::LimitBehindSilu => "swiglu",
            Fault::ChoiceOffByOne => "index_select",
            Fault::DeltaStateLost => "delta_rule",
            Fault::ScanStateLost => "ssm_scan",
            Fault::SkippedSharedGate => "shared_expert_sigmoid",
        }
    }

    /// The node that a comparison can name: behind a result of which no stage tells, the first that one shows.
    #[must_use]
    pub fn named(self) -> &'static str {
        match self {
            Fault::SkippedResidualScale => "attn_residual",
            Fault::NotTurnedBack => "attention_turned",
            Fault::EntryTurnedAsItsLast | Fault::WindowStateLost => "entry_turned",
            other => other.node_name(),
        }
    }

    /// Breaks this in one layer of a graph; `None` where the model has no such op there. `routed` is an expert that the
    /// input is routed to in that layer.
    #[must_use]
    pub fn inject(
        self,
        graph: &Graph,
        weights: &Arc<dyn WeightSource>,
        layer: usize,
        routed: usize,
    ) -> Option<Injected> {
        let mut graph = graph.clone();
        let mut weights = Arc::clone(weights);
        let at = graph
            .nodes
            .iter()
            .position(|n| n.name == self.node_name() && n.layer.is_some_and(|l| l.index() == layer))?;
        // Alters the bytes of the weight that the op reads.
        let mut alter =
            |graph: &Graph, change: &dyn Fn(&WeightDecl, &mut [u8]) -> Option<()>| -> Option<()> {
                let decl = graph.weight(*graph.nodes[at].op.weights().first()?);
                let mut bytes = weights.bytes(&decl.name)?.to_vec();
                change(decl, &mut bytes)?;
                weights = Arc::new(Overlay { base: Arc::clone(&weights), name: decl.name.clone(), bytes });
                Some(())
            };
        let mut hook = Hook { fault: self, layer, selection_bias: Vec::new() };
        match self {
            Fault::NoRenormalising => {
                let Op::Router(attrs) = &mut graph.nodes[at].op else { return None };
                attrs.norm_topk_prob = false;
            }
            Fault::UnstretchedScores => {
                let Op::Attention(attrs) = &mut graph.nodes[at].op else { return None };
                // (0.1 · ln 40 + 1)², as DeepSeek's models have it.
                attrs.scale /= 1.873_8;
            }
            Fault::SinkLeftOut => {
                match &mut graph.nodes[at].op {
                    Op::Attention(attrs) => attrs.sinks.take()?,
                    Op::CompressedAttention(attrs) => attrs.sinks.take()?,
                    _ => return None,
                };
            }
            Fault::WindowOffByOne => match &mut graph.nodes[at].op {
                Op::Attention(attrs) => *attrs.window.as_mut()? -= 1,
                Op::CompressedAttention(attrs) => attrs.window -= 1,
                _ => return None,
            },
            Fault::SkippedResidualScale => {
                let Op::MatMul { scale, .. } = &mut graph.nodes[at].op else { return None };
                scale.take()?;
            }
            Fault::SelectionBiasInWeights => {
                let Op::Router(attrs) = &graph.nodes[at].op else { return None };
                let bytes = weights.bytes(&graph.weight(attrs.selection_bias?).name)?;
                hook.selection_bias =
                    bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
                return Some(Injected { graph, weights, hook: Some(hook) });
            }
            Fault::GroupsIgnored => {
                let Op::Router(attrs) = &mut graph.nodes[at].op else { return None };
                attrs.groups.take()?;
            }
            Fault::WrongPartOfHeads => {
                let Op::Slice { start, .. } = &mut graph.nodes[at].op else { return None };
                *start = 0;
            }
            Fault::RopePairing => {
                let Op::Rope { pairing, .. } = &mut graph.nodes[at].op else { return None };
                *pairing = match pairing {
                    RopePairing::Half => RopePairing::Interleaved,
                    RopePairing::Interleaved => RopePairing::Half,
                };
            }
            Fault::RopeBase | Fault::NotTurnedBack | Fault::EntryTurnedAsItsLast => {
                let Op::Rope { table, .. } = graph.nodes[at].op else { return None };
                let spec = graph.rope_tables[table.index()].clone();
                let moved = graph.add_rope_table(match self {
                    Fault::NotTurnedBack => RopeSpec { back: !spec.back, ..spec },
                    Fault::EntryTurnedAsItsLast => RopeSpec { behind: 0, ..spec },
                    _ => RopeSpec { theta: spec.theta + 100.0, ..spec },
                });
                let Op::Rope { table, .. } = &mut graph.nodes[at].op else { return None };
                *table = moved;
            }
            Fault::LimitBehindSilu => {
                let Op::GatedAct { activation } = &mut graph.nodes[at].op else { return None };
                let ActivationFn::BoundedSwiglu { limit } = *activation else { return None };
                *activation = ActivationFn::LimitedSwiglu { limit };
            }
            Fault::ChoiceOffByOne => {
                let Op::IndexSelect { top_k, .. } = &mut graph.nodes[at].op else { return None };
                *top_k -= 1;
            }
            Fault::SkippedQNorm | Fault::SkippedKNorm => {
                // Beside 2^60 no mean of squares counts: x / √2^60 · 2^30 is x, each step exact.
                let Op::RmsNorm { eps, .. } = &mut graph.nodes[at].op else { return None };
                *eps = (1u64 << 60) as f32;
                alter(&graph, &|_, bytes| fill_f32(bytes, (1u32 << 30) as f32))?;
            }
            Fault::SkippedSharedGate => {
                // One expert's weight by its sum is 1.
                let Op::Router(attrs) = &mut graph.nodes[at].op else { return None };
                attrs.norm_topk_prob = true;
            }
            Fault::ReversedConvolution => alter(&graph, &|decl, bytes| {
                for row in bytes.chunks_exact_mut(decl.shape.last()? * size_of::<f32>()) {
                    let reversed: Vec<u8> = row.rchunks_exact(size_of::<f32>()).flatten().copied().collect();
                    row.copy_from_slice(&reversed);
                }
                Some(())
            })?,
            Fault::NanLane => alter(&graph, &|_, bytes| fill_f32(bytes.last_chunk_mut::<4>()?, f32::NAN))?,
            Fault::SwappedScaleNibble => alter(&graph, &|decl, bytes| swap_scale_nibble(decl.format, bytes))?,
            Fault::WrongExpert => alter(&graph, &|decl, bytes| {
                let experts = *decl.shape.first()?;
                let each = bytes.len() / experts;
                let next = (routed + 1) % experts * each;
                bytes.copy_within(next..next + each, routed * each);
                Some(())
            })?,
            Fault::DroppedExpert
            | Fault::UniformRouterWeights
            | Fault::ResidualTwice
            | Fault::CausalOffByOne
            | Fault::DeltaStateLost
            | Fault::ScanStateLost
            | Fault::WindowStateLost
            | Fault::ConvStateLost => {
                return Some(Injected { graph, weights, hook: Some(hook) });
            }
        }
        Some(Injected { graph, weights, hook: None })
    }
}

/// One side of a comparison, broken.
pub struct Injected {
    /// The graph to compile.
    pub graph: Graph,
    /// The weights to compile it with.
    pub weights: Arc<dyn WeightSource>,
    /// Goes between replacing and comparing, where the fault is not compiled in.
    pub hook: Option<Hook>,
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

/// Makes every element of an F32 weight the same.
fn fill_f32(bytes: &mut [u8], value: f32) -> Option<()> {
    bytes.chunks_exact_mut(size_of::<f32>()).for_each(|x| x.copy_from_slice(&value.to_le_bytes()));
    Some(())
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
        Format::Iq2Xs => 66..74,
        Format::Iq2S => 74..82,
        Format::Iq3S => 106..110,
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

/// Puts wrong outputs in place, or empties states.
#[derive(Debug, Clone)]
pub struct Hook {
    fault: Fault,
    layer: usize,
    /// Of the router, for the fault that takes it for a weight.
    selection_bias: Vec<f32>,
}

impl Hook {
    fn breaks(&self, node: &Node) -> bool {
        node.layer.is_some_and(|l| l.index() == self.layer) && node.name == self.fault.node_name()
    }

    fn empties_states(&self) -> bool {
        matches!(
            self.fault,
            Fault::DeltaStateLost | Fault::ScanStateLost | Fault::ConvStateLost | Fault::WindowStateLost
        )
    }
}

impl Observer for Hook {
    fn before_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        for node in plan.launch_nodes(launch).filter(|n| self.empties_states() && self.breaks(n)) {
            for state in node.op.written_states() {
                let held = values.read_state(state, 0..1)?;
                values.write_state(state, 0, &vec![0.0; held.len()])?;
            }
        }
        Ok(())
    }

    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        _elapsed: Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        let broken = |node: &&Node| !self.empties_states() && self.breaks(node);
        let Some(broken) = plan.launch_nodes(launch).find(broken) else { return Ok(()) };
        let mut wrong = HashSet::from([self.corrupt(plan, broken, values)?]);
        for node in plan.launch_nodes(launch).skip_while(|n| n.id != broken.id).skip(1) {
            if node.inputs.iter().any(|v| wrong.contains(v)) {
                wrong.insert(self.again(node, values)?);
            }
        }
        Ok(())
    }
}

impl Hook {
    /// Puts a wrong output in place, and says which.
    fn corrupt(
        &self,
        plan: &Plan,
        node: &Node,
        values: &mut dyn ValueAccess,
    ) -> Result<ValueId, BackendError> {
        let input = |values: &mut dyn ValueAccess, i: usize| values.read(node.inputs[i]);
        match (self.fault, &node.op) {
            (Fault::DroppedExpert, Op::ExpertCombine) => {
                let (y, w) = (input(values, 0)?, input(values, 1)?);
                let &[tokens, per_tok, width] = y.shape.as_slice() else { return Err(self.refuse(node)) };
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
            (Fault::UniformRouterWeights, Op::Router(attrs)) => {
                let weight = 1.0 / attrs.num_experts_per_tok as f32;
                edit(values, node, 1, |out| out.fill(weight))
            }
            (Fault::SelectionBiasInWeights, Op::Router(attrs)) => {
                let logits = input(values, 0)?.data.to_f32();
                let ids = values.read(node.outputs[0])?.data.to_f32();
                if attrs.gate != GateKind::Sigmoid {
                    return Err(self.refuse(node));
                }
                edit(values, node, 1, |out| {
                    let chosen = ids.chunks_exact(attrs.num_experts_per_tok);
                    let rows = out.chunks_exact_mut(attrs.num_experts_per_tok);
                    for ((out, ids), logits) in rows.zip(chosen).zip(logits.chunks_exact(attrs.num_experts)) {
                        for (out, id) in out.iter_mut().zip(ids) {
                            let expert = *id as usize;
                            *out = 1.0 / (1.0 + (-logits[expert]).exp()) + self.selection_bias[expert];
                        }
                        let sum: f32 = if attrs.norm_topk_prob { out.iter().sum() } else { 1.0 };
                        out.iter_mut().for_each(|x| *x *= attrs.scale / sum);
                    }
                })
            }
            (Fault::ResidualTwice, Op::Add) => {
                let x = input(values, 0)?.data.to_f32();
                edit(values, node, 0, |out| out.iter_mut().zip(&x).for_each(|(o, x)| *o += x))
            }
            (Fault::CausalOffByOne, Op::Attention(attrs)) => {
                let q = input(values, 0)?.data.to_f32();
                let sizes = values.sizes();
                let mut rows = [Vec::new(), Vec::new()];
                let value_width = if attrs.value_in_key { attrs.head_dim } else { attrs.value_head_dim };
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
                        let q = &q[t * attrs.num_attention_heads * attrs.head_dim..];
                        attend(attrs, q, &rows, value_width, seen, out);
                    }
                })
            }
            _ => Err(self.refuse(node)),
        }
    }

    /// Evaluates a node of the same launch again, with its wrong input.
    fn again(&self, node: &Node, values: &mut dyn ValueAccess) -> Result<ValueId, BackendError> {
        let Op::Add = node.op else { return Err(self.refuse(node)) };
        let (a, b) = (values.read(node.inputs[0])?.data.to_f32(), values.read(node.inputs[1])?.data.to_f32());
        edit(values, node, 0, |out| {
            for ((out, a), b) in out.iter_mut().zip(&a).zip(&b) {
                *out = a + b;
            }
        })
    }

    fn refuse(&self, node: &Node) -> BackendError {
        BackendError::Input(format!("{:?} cannot be carried through {}", self.fault, node.path()))
    }
}

/// Reads an output, lets it be altered, and writes it back; which value that is.
fn edit(
    values: &mut dyn ValueAccess,
    node: &Node,
    output: usize,
    alter: impl FnOnce(&mut [f32]),
) -> Result<ValueId, BackendError> {
    let value = node.outputs[output];
    let tensor = values.read(value)?;
    let mut data = tensor.data.to_f32();
    alter(&mut data);
    values.write(value, &HostTensor { shape: tensor.shape, data: TensorData::F32(data) })?;
    Ok(value)
}

/// One query over the first `seen` cached positions, whose values stand in rows `value_width` wide a head.
fn attend(
    attrs: &AttentionAttrs,
    q: &[f32],
    [keys, cached]: &[Vec<f32>; 2],
    value_width: usize,
    seen: usize,
    out: &mut [f32],
) {
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
                (x - max).exp() / sum * f64::from(cached[(s * groups + group) * value_width + lane])
            };
            out[head * dv + lane] = scores.iter().enumerate().map(weighted).sum::<f64>() as f32;
        }
    }
}
