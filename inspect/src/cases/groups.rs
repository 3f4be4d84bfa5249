//! Cases of the groups: nodes that some backend runs as one launch, with sizes, formats and attributes at random, some of
//! which no launch takes as a group. What a group computes is what its nodes compute one by one, within their tolerances.

mod experts;
mod latent;

use super::attention::{self, Steps};
use super::recurrent;
use super::small::{activation, row, turn};
use super::{Builder, OpCase, TOLERANCE};
use crate::tolerance::{Relation, moved};
use moe_run_graph::groups::{
    AttentionStep, DeltaStep, DownCombine, FinalNormLmHead, GateUp, GatedMatMul, Group, LatentHeads,
    MatMulResidual, NormQkv, NormResidual, NormRouter, NormsResidual, RouteGateUp, RouterGateUp,
};
use moe_run_graph::ir::{
    DType, Dim, GateKind, LayerIdx, Op, PointwiseFn, RouterAttrs, Shape, ValueId, WeightHome, WeightId,
    WeightSlice,
};
use moe_run_graph::quant::Format;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::ExecutableInfo;

/// The layer that the nodes belong to.
const LAYER: Option<LayerIdx> = Some(LayerIdx(0));

/// The groups (graph/src/groups), but for those that are met as parts of another's case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupCase {
    /// A norm and the matmuls of q, k and v, with their bounds; an output gate's and a router's too.
    NormQkv,
    /// A norm or none, gate and up of a dense layer, GatedAct.
    GateUp,
    /// A norm, the router's matmul, a shared expert's gate; a post-norm and the residual in front.
    NormRouter,
    /// A post-norm and the residual.
    NormResidual,
    /// A post-norm, perhaps of a sum of two normed rows, the residual, perhaps a factor.
    NormsResidual,
    /// A gate, a norm of heads, a matmul and the residual.
    GatedMatMul,
    /// A matmul and the residual.
    MatMulResidual,
    /// Q/K norm, Rope, KvWrite, Attention; and RopeKv.
    AttentionStep,
    /// The gates of the delta rule, of parts of products or whole ones, and the rule.
    DeltaStep,
    /// All between the products of latent attention and the attention.
    LatentHeads,
    /// A router's norm and logits, gate and up of the same row, a further norm of it.
    RouterGateUp,
    /// Router, gate and up of the chosen experts, GatedAct; and ExpertsGateUp.
    RouteGateUp,
    /// Down of the chosen experts, their sum, a shared expert, the residual.
    DownCombine,
    /// GetRows, RmsNorm, lm_head.
    FinalNormLmHead,
}

impl GroupCase {
    /// All of them.
    pub const ALL: &'static [GroupCase] = &[
        GroupCase::NormQkv,
        GroupCase::GateUp,
        GroupCase::NormRouter,
        GroupCase::NormResidual,
        GroupCase::NormsResidual,
        GroupCase::GatedMatMul,
        GroupCase::MatMulResidual,
        GroupCase::AttentionStep,
        GroupCase::DeltaStep,
        GroupCase::LatentHeads,
        GroupCase::RouterGateUp,
        GroupCase::RouteGateUp,
        GroupCase::DownCombine,
        GroupCase::FinalNormLmHead,
    ];

    /// The group's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            GroupCase::NormQkv => NormQkv::NAME,
            GroupCase::GateUp => GateUp::NAME,
            GroupCase::NormRouter => NormRouter::NAME,
            GroupCase::NormResidual => NormResidual::NAME,
            GroupCase::NormsResidual => NormsResidual::NAME,
            GroupCase::GatedMatMul => GatedMatMul::NAME,
            GroupCase::MatMulResidual => MatMulResidual::NAME,
            GroupCase::AttentionStep => AttentionStep::NAME,
            GroupCase::DeltaStep => DeltaStep::NAME,
            GroupCase::LatentHeads => LatentHeads::NAME,
            GroupCase::RouterGateUp => RouterGateUp::NAME,
            GroupCase::RouteGateUp => RouteGateUp::NAME,
            GroupCase::DownCombine => DownCombine::NAME,
            GroupCase::FinalNormLmHead => FinalNormLmHead::NAME,
        }
    }
}

/// The case of a group and a seed.
///
/// # Errors
/// [`BackendError::Graph`] if the case itself is unsound.
pub fn case(group: GroupCase, seed: u64) -> Result<OpCase, BackendError> {
    let mut b = Builder::new(Format::F32, &[0x6772_6f75_7000 + group as u64, seed]);
    b.graph.num_layers = 1;
    let (steps, ctx_size) = match group {
        GroupCase::NormQkv => norm_qkv(&mut b)?,
        GroupCase::GateUp => gate_up(&mut b)?,
        GroupCase::NormRouter => norm_router(&mut b)?,
        GroupCase::NormResidual => norm_residual(&mut b)?,
        GroupCase::NormsResidual => latent::norms_residual(&mut b)?,
        GroupCase::GatedMatMul => gated_matmul(&mut b)?,
        GroupCase::MatMulResidual => matmul_residual(&mut b)?,
        GroupCase::AttentionStep => attention_step(&mut b)?,
        GroupCase::DeltaStep => recurrent::delta_step(&mut b)?,
        GroupCase::LatentHeads => latent::latent_heads(&mut b)?,
        GroupCase::RouterGateUp => experts::router_gate_up(&mut b)?,
        GroupCase::RouteGateUp => experts::route_gate_up(&mut b)?,
        GroupCase::DownCombine => experts::down_combine(&mut b)?,
        GroupCase::FinalNormLmHead => final_norm_lm_head(&mut b)?,
    };
    Ok(b.case(group.name(), seed, steps, ctx_size))
}

/// How far a case's results may be from the reference's under the same definition: its nodes' own limits, one behind the
/// other, those wider that round what another node made.
#[must_use]
pub fn tolerance(case: &OpCase, info: &ExecutableInfo) -> f64 {
    let graph = &case.graph;
    let limits = graph.nodes.iter().map(|node| {
        let reads_made = node.inputs.iter().any(|v| graph.value(*v).producer.is_some());
        let limit = if reads_made { moved } else { crate::tolerance::local };
        limit(node.op.stem(), info, Relation::Same).value
    });
    limits.sum::<f64>().max(TOLERANCE)
}

/// A model's width and the formats of what reads it: one, or several of which each tensor takes one.
struct Widths {
    formats: Vec<Format>,
    hidden_size: usize,
}

impl Widths {
    fn of(b: &mut Builder, sizes: &[usize]) -> Widths {
        let mut formats = vec![b.pick(&Format::ALL)];
        if b.one_in(3) {
            formats.push(b.pick(&Format::ALL));
        }
        let unit = formats.iter().map(|f| f.block_elems()).max().unwrap_or(1);
        let fitting: Vec<usize> = sizes.iter().copied().filter(|n| n % unit == 0).collect();
        let hidden_size = b.pick(&fitting);
        let names: Vec<&str> = formats.iter().map(|f| f.name()).collect();
        b.note("formats", names.join("|"));
        b.note("in", hidden_size);
        Widths { formats, hidden_size }
    }

    /// A matrix [.., out, hidden_size], or a part of one now and then.
    fn slice(&self, b: &mut Builder, name: &str, experts: Option<usize>, out: usize) -> WeightSlice {
        b.format = b.pick(&self.formats);
        let cut = if b.one_in(6) { b.between(1, 9) } else { 0 };
        let shape: Vec<usize> = experts.into_iter().chain([out + cut, self.hidden_size]).collect();
        let tensor = b.matrix(name, &shape);
        let experts = experts.map(|all| 0..all);
        WeightSlice { tensor, rows: cut..out + cut, experts, home: WeightHome::Device }
    }
}

/// A matmul of `out` rows, now and then with a bias or a scale.
fn project(
    b: &mut Builder,
    widths: &Widths,
    name: &'static str,
    x: ValueId,
    out: usize,
) -> Result<ValueId, BackendError> {
    let weight = widths.slice(b, name, None, out);
    let bias = b.one_in(4).then(|| b.vector(&format!("{name} bias"), &[out], 0.0));
    let scale = b.one_in(6).then_some(0.75);
    if bias.is_some() || scale.is_some() {
        b.note(name, "biased or scaled");
    }
    Ok(b.graph.push(LAYER, name, Op::MatMul { weight, bias, scale }, &[x])?[0])
}

/// A norm of `heads` heads of `width` elements.
fn norm(
    b: &mut Builder,
    name: &'static str,
    x: ValueId,
    width: usize,
    heads: usize,
    eps: f32,
) -> Result<ValueId, BackendError> {
    let weight: WeightId = b.vector(name, &[width], 1.0);
    Ok(b.graph.push(LAYER, name, Op::RmsNorm { weight: Some(weight), eps, heads }, &[x])?[0])
}

/// A norm of whole rows: RMSNorm, or now and then LayerNorm, with a bias or without.
fn row_norm(
    b: &mut Builder,
    name: &'static str,
    x: ValueId,
    width: usize,
    eps: f32,
) -> Result<ValueId, BackendError> {
    if !b.one_in(4) {
        return norm(b, name, x, width, 1, eps);
    }
    let weight = b.vector(name, &[width], 1.0);
    let bias = b.one_in(2).then(|| b.vector("norm bias", &[width], 0.0));
    b.note("layer norm", if bias.is_some() { "biased" } else { "plain" });
    Ok(b.graph.push(LAYER, name, Op::LayerNorm { weight, bias, eps }, &[x])?[0])
}

/// A step of several tokens and two of one: no group, some, and all of them.
fn steps(b: &mut Builder) -> Vec<usize> {
    let first = b.pick(&[1, 2, 3, 7, 8, 9, 17, 33]);
    b.note("T", format!("{first}+1+1"));
    vec![first, 1, 1]
}

/// Steps with random values of every boundary input.
fn plain_steps(b: &mut Builder) -> Steps {
    let mut at = 0;
    let mut all = Vec::new();
    for tokens in steps(b) {
        all.push(b.step(at as u32, tokens, &[], 1.0));
        at += tokens;
    }
    (all, at)
}

/// All that the nodes make, now and then; else the last alone: what is wanted on the way is stored from within a group.
pub(super) fn outputs(b: &mut Builder, inner: &[ValueId], last: &[ValueId]) {
    let inner = if b.one_in(3) { inner } else { &[] };
    b.graph.outputs = [last, inner].concat();
}

/// `width` elements in heads from outside, now and then as a part of each head of something wider; that part goes to `inner`.
pub(super) fn part(
    b: &mut Builder,
    name: &'static str,
    width: usize,
    heads: usize,
    inner: &mut Vec<ValueId>,
) -> Result<ValueId, BackendError> {
    let [before, behind] = [(); 2].map(|()| b.pick(&[0, 0, 1, 5]));
    let len = width / heads;
    if before + behind == 0 {
        return Ok(b.boundary(row(width), DType::F32));
    }
    b.note(name, format!("{len} of {}", before + len + behind));
    let whole = b.boundary(row(heads * (before + len + behind)), DType::F32);
    let op = Op::Slice { heads, start: before, len };
    let sliced = b.graph.push(LAYER, name, op, &[whole])?[0];
    inner.push(sliced);
    Ok(sliced)
}

const HIDDEN_SIZES: &[usize] = &[64, 96, 128, 160, 256, 512, 768, 1024, 1280, 2048];

fn norm_qkv(b: &mut Builder) -> Result<Steps, BackendError> {
    let widths = Widths::of(b, HIDDEN_SIZES);
    let x = b.boundary(row(widths.hidden_size), DType::F32);
    let normed = row_norm(b, "attn_norm", x, widths.hidden_size, 1e-6)?;
    let (kv_heads, group, d) = (b.pick(&[1, 2, 3]), b.pick(&[1, 2, 4]), b.pick(&[32, 64, 20]));
    let mut inner = vec![normed];
    let mut last = Vec::new();
    let dv = b.pick(&[d, d, 16]);
    let bounded = b.one_in(4);
    b.note("bounded", bounded);
    for (name, rows) in
        [("q_proj", kv_heads * group * d), ("k_proj", kv_heads * d), ("v_proj", kv_heads * dv)]
    {
        let mut y = project(b, &widths, name, normed, rows)?;
        if bounded {
            inner.push(y);
            let function = PointwiseFn::Clamp(b.pick(&[0.05, 0.5]));
            y = b.graph.push(LAYER, "clamp", Op::Pointwise { function }, &[y])?[0];
        }
        last.push(y);
    }
    // An output gate, or a router that reads the same norm.
    let fourth = b.pick(&["none", "none", "gate", "router"]);
    b.note("fourth", fourth);
    match fourth {
        "gate" => {
            let logits = project(b, &widths, "attn_gate", normed, kv_heads * group * d)?;
            let attended = b.boundary(row(kv_heads * group * d), DType::F32);
            let op = Op::GatedAct { activation: activation(b) };
            last.push(b.graph.push(LAYER, "gated", op, &[logits, attended])?[1]);
        }
        "router" => {
            let logits = project(b, &widths, "router", normed, 8)?;
            last.push(b.graph.push(LAYER, "router_topk", sigmoid(8, 2), &[logits])?[1]);
        }
        _ => {}
    }
    b.note("q", kv_heads * group * d);
    b.note("kv", kv_heads * d);
    outputs(b, &inner, &last);
    Ok(plain_steps(b))
}

fn gate_up(b: &mut Builder) -> Result<Steps, BackendError> {
    let widths = Widths::of(b, HIDDEN_SIZES);
    let x = b.boundary(row(widths.hidden_size), DType::F32);
    let is_normed = !b.one_in(3);
    b.note("normed", is_normed);
    let normed = if is_normed { row_norm(b, "ffn_norm", x, widths.hidden_size, 1e-5)? } else { x };
    let out = b.pick(&[16, 33, 64, 100, 256, 300]);
    b.note("out", out);
    // Biased or scaled ones no launch takes as a group.
    let plain = !b.one_in(6);
    let product = |b: &mut Builder, name| {
        if !plain {
            return project(b, &widths, name, normed, out);
        }
        let weight = widths.slice(b, name, None, out);
        Ok(b.graph.push(LAYER, name, Op::MatMul { weight, bias: None, scale: None }, &[normed])?[0])
    };
    let (gate, up) = (product(b, "gate_proj")?, product(b, "up_proj")?);
    let op = Op::GatedAct { activation: activation(b) };
    let acted = b.graph.push(LAYER, "swiglu", op, &[gate, up])?;
    let inner = [gate, up, acted[0]];
    let inner: Vec<ValueId> = is_normed.then_some(normed).into_iter().chain(inner).collect();
    outputs(b, &inner, &acted[1..]);
    Ok(plain_steps(b))
}

/// A choice of `num_experts_per_tok` by the sigmoid of each logit.
fn sigmoid(num_experts: usize, num_experts_per_tok: usize) -> Op {
    Op::Router(RouterAttrs {
        num_experts,
        num_experts_per_tok,
        gate: GateKind::Sigmoid,
        norm_topk_prob: false,
        scale: 1.0,
        selection_bias: None,
        groups: None,
        expert_scale: None,
    })
}

fn norm_router(b: &mut Builder) -> Result<Steps, BackendError> {
    let widths = Widths::of(b, HIDDEN_SIZES);
    let mut x = b.boundary(row(widths.hidden_size), DType::F32);
    let mut inner = Vec::new();
    if b.one_in(3) {
        b.note("post-norm", true);
        x = post_norm(b, x, widths.hidden_size, &mut inner)?;
        inner.push(x);
    }
    let normed = row_norm(b, "ffn_norm", x, widths.hidden_size, 1e-6)?;
    inner.push(normed);
    let experts = b.pick(&[4, 8, 33, 60, 64, 128, 160]);
    b.note("E", experts);
    let logits = project(b, &widths, "router", normed, experts)?;
    // The best weights in order are as steady as the logits, whoever they belong to.
    let per_tok = b.between(1, 8).min(experts);
    let routed = b.graph.push(LAYER, "router_topk", sigmoid(experts, per_tok), &[logits])?;
    let mut last = vec![logits, routed[1]];
    if b.one_in(2) {
        b.note("shared gate", true);
        let logit = project(b, &widths, "shared_expert_gate", normed, 1)?;
        let factor = b.graph.push(LAYER, "shared_expert_sigmoid", sigmoid(1, 1), &[logit])?;
        last.extend([logit, factor[1]]);
    }
    outputs(b, &inner, &last);
    Ok(plain_steps(b))
}

/// A post-norm of `x`, which goes to `inner`, and its sum with a residual stream.
fn post_norm(
    b: &mut Builder,
    x: ValueId,
    width: usize,
    inner: &mut Vec<ValueId>,
) -> Result<ValueId, BackendError> {
    let residual = b.boundary(row(width), DType::F32);
    let normed = norm(b, "post_norm", x, width, 1, 1e-5)?;
    inner.push(normed);
    let operands = if b.one_in(2) { [residual, normed] } else { [normed, residual] };
    Ok(b.graph.push(LAYER, "residual", Op::Add, &operands)?[0])
}

fn norm_residual(b: &mut Builder) -> Result<Steps, BackendError> {
    let width = b.pick(&[1, 33, 64, 100, 256, 768, 2048]);
    b.note("width", width);
    let x = b.boundary(row(width), DType::F32);
    let mut inner = Vec::new();
    let sum = post_norm(b, x, width, &mut inner)?;
    outputs(b, &inner, &[sum]);
    Ok(plain_steps(b))
}

fn gated_matmul(b: &mut Builder) -> Result<Steps, BackendError> {
    let widths = Widths::of(b, HIDDEN_SIZES);
    let width = widths.hidden_size;
    let mut x = b.boundary(row(width), DType::F32);
    let heads = b.pick(&[1, 2, 4, 8, 16, 32]);
    let mut parts = Vec::new();
    let place = b.pick(&["none", "none", "in front", "behind"]);
    let by_head = b.one_in(3);
    b.note("heads", heads);
    b.note("norm", place);
    b.note("by head", by_head);
    let mut inner = Vec::new();
    // A weight for all heads, a part of it for each, or none.
    let of_heads = |b: &mut Builder, x| {
        let weight = match b.between(0, 2) {
            0 => None,
            1 => Some(b.vector("head_norm", &[width / heads], 1.0)),
            _ => Some(b.vector("head_norm", &[width], 1.0)),
        };
        let op = Op::RmsNorm { weight, eps: 1e-5, heads };
        Ok::<ValueId, BackendError>(b.graph.push(LAYER, "head_norm", op, &[x])?[0])
    };
    if place == "in front" {
        x = of_heads(b, x)?;
        inner.push(x);
    }
    let op = Op::GatedAct { activation: activation(b) };
    if by_head {
        let gate = part(b, "gate", heads, heads, &mut parts)?;
        let factors = b.graph.push(LAYER, "attn_gate", op, &[gate, gate])?[0];
        x = b.graph.push(LAYER, "attention_gated", Op::MulHeads, &[x, factors])?[0];
        inner.extend([factors, x]);
    } else {
        let gate = part(b, "gate", width, heads, &mut parts)?;
        let acted = b.graph.push(LAYER, "attention_gated", op, &[gate, x])?;
        x = acted[1];
        inner.extend(acted);
    }
    if place == "behind" {
        x = of_heads(b, x)?;
        inner.push(x);
    }
    inner.extend(parts);
    let out = b.pick(&[8, 33, 64, 100, 256]);
    b.note("out", out);
    let product = project(b, &widths, "o_proj", x, out)?;
    if b.one_in(3) {
        outputs(b, &inner, &[product]);
        return Ok(plain_steps(b));
    }
    inner.push(product);
    let residual = b.boundary(row(out), DType::F32);
    let operands = if b.one_in(2) { [residual, product] } else { [product, residual] };
    let sum = b.graph.push(LAYER, "attn_residual", Op::Add, &operands)?;
    outputs(b, &inner, &sum);
    Ok(plain_steps(b))
}

fn matmul_residual(b: &mut Builder) -> Result<Steps, BackendError> {
    let widths = Widths::of(b, HIDDEN_SIZES);
    let each = b.one_in(6).then_some(Dim::Fixed(3));
    let shape =
        |width| Shape([Some(Dim::Tokens), each, Some(Dim::Fixed(width))].into_iter().flatten().collect());
    let out = b.pick(&[8, 33, 64, 100, 256, 300]);
    b.note("out", out);
    b.note("each", format!("{each:?}"));
    let x = b.boundary(shape(widths.hidden_size), DType::F32);
    let residual = b.boundary(shape(out), DType::F32);
    let product = project(b, &widths, "o_proj", x, out)?;
    let operands = if b.one_in(2) { [residual, product] } else { [product, residual] };
    let sum = b.graph.push(LAYER, "attn_residual", Op::Add, &operands)?;
    outputs(b, &[product], &sum);
    Ok(plain_steps(b))
}

fn attention_step(b: &mut Builder) -> Result<Steps, BackendError> {
    let attrs = attention::attrs(b);
    let [mut q, k, v] = attention::operands(b, &attrs);
    let mut inner = Vec::new();
    if b.one_in(4) {
        q = part(b, "q", attrs.num_attention_heads * attrs.head_dim, attrs.num_attention_heads, &mut inner)?;
    }
    let (heads, kv_heads, d) = (attrs.num_attention_heads, attrs.num_key_value_heads, attrs.head_dim);
    // Of each head, of whole rows, or none.
    let norms = b.pick(&["heads", "heads", "rows", "none"]);
    b.note("norms", norms);
    let eps = b.pick(&[1e-6, 1e-5]);
    let k_eps = if b.one_in(6) { 1e-3 } else { eps };
    let q_turn = turn(b, d);
    let k_turn = if b.one_in(8) { turn(b, d) } else { q_turn };
    let (rotates, norm_last) = (!b.one_in(5), b.one_in(4));
    b.note("rotates", rotates);
    b.note("norm last", norm_last);
    let positions = b.graph.inputs.positions;
    // The norms of both, or the rotations of both.
    let mut place =
        |b: &mut Builder, is_norm: bool, [q, k]: [ValueId; 2]| -> Result<[ValueId; 2], BackendError> {
            let placed = match (is_norm, norms) {
                (true, "none") => return Ok([q, k]),
                (true, _) => {
                    let of = |heads: usize| if norms == "rows" { (heads * d, 1) } else { (d, heads) };
                    let ((q_width, q_heads), (k_width, k_heads)) = (of(heads), of(kv_heads));
                    let q = norm(b, "q_norm", q, q_width, q_heads, eps)?;
                    [q, norm(b, "k_norm", k, k_width, k_heads, k_eps)?]
                }
                (false, _) if !rotates => return Ok([q, k]),
                (false, _) => {
                    let mut rope = |name, x, (table, pairing), heads| {
                        Ok::<ValueId, BackendError>(
                            b.graph.push(LAYER, name, Op::Rope { table, pairing, heads }, &[x, positions])?
                                [0],
                        )
                    };
                    [rope("q_rope", q, q_turn, heads)?, rope("k_rope", k, k_turn, kv_heads)?]
                }
            };
            inner.extend(placed);
            Ok(placed)
        };
    let first = place(b, !norm_last, [q, k])?;
    let [q, k] = place(b, norm_last, first)?;
    let v = if b.one_in(4) {
        let weight = b.one_in(2).then(|| b.vector("v_norm", &[attrs.value_head_dim], 1.0));
        b.note("values' norm", if weight.is_some() { "weighed" } else { "plain" });
        let v = b.graph.push(LAYER, "v_norm", Op::RmsNorm { weight, eps, heads: kv_heads }, &[v])?[0];
        inner.push(v);
        v
    } else {
        v
    };
    let cache = attention::cache(b, &attrs, k, v)?;
    let attended = attention::attend(b, &attrs, q, &cache)?;
    outputs(b, &inner, &attended);
    Ok(attention::conversation(b, &attrs))
}

fn final_norm_lm_head(b: &mut Builder) -> Result<Steps, BackendError> {
    let widths = Widths::of(b, HIDDEN_SIZES);
    let x = b.boundary(row(widths.hidden_size), DType::F32);
    let rows = b.graph.inputs.logits_rows;
    let picked = b.graph.push(LAYER, "logits_rows", Op::GetRows, &[x, rows])?[0];
    let normed = row_norm(b, "output_norm", picked, widths.hidden_size, 1e-6)?;
    let vocab = b.pick(&[17, 64, 100, 300]);
    b.note("vocab", vocab);
    let logits = project(b, &widths, "lm_head", normed, vocab)?;
    outputs(b, &[normed], &[logits]);
    let mut at = 0;
    let mut all = Vec::new();
    for tokens in steps(b) {
        let rows: Vec<u32> =
            (0..b.between(1, tokens.min(5))).map(|_| b.between(0, tokens - 1) as u32).collect();
        all.push(b.step(at as u32, tokens, &rows, 1.0));
        at += tokens;
    }
    Ok((all, at))
}
