//! Cases of the ops without big weights.

use super::Builder;
use super::attention::Steps;
use moe_run_graph::ir::{
    ActivationFn, DType, Dim, ExpertGroups, GateKind, GivenExpertsAttrs, GroupScore, Op, PointwiseFn,
    PositionScaleAttrs, RopePairing, RopeScaling, RopeSpec, RopeTableId, RouterAttrs, Shape, Stage,
};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::HostTensor;

/// [T, n].
pub(super) fn row(n: usize) -> Shape {
    Shape::new(&[Dim::Tokens, Dim::Fixed(n)])
}

pub(super) fn rms_norm(b: &mut Builder) -> Result<Steps, BackendError> {
    let heads = b.pick(&[1, 1, 2, 3, 8, 32]);
    let width =
        if heads == 1 { b.pick(&[1, 33, 32, 100, 256, 768, 2048]) } else { b.pick(&[32, 64, 128, 80, 33]) };
    // Now and then a weight of its own for each head.
    let weights = if b.one_in(8) { heads * width } else { width };
    let weight = (!b.one_in(4)).then(|| b.vector("norm", &[weights], 1.0));
    let x = b.boundary(row(heads * width), DType::F32);
    let eps = b.pick(&[1e-6, 1e-5, 1e-2]);
    b.graph.outputs = b.graph.push(None, "norm", Op::RmsNorm { weight, eps, heads }, &[x])?;
    let (t, bound) = (b.tokens(), b.pick(&[1e-3, 1.0, 100.0]));
    b.note("T", t);
    b.note("heads", heads);
    b.note("width", width);
    b.note("weight", weight.is_some());
    Ok((vec![b.step(0, t, &[], bound)], t))
}

pub(super) fn layer_norm(b: &mut Builder) -> Result<Steps, BackendError> {
    let width = b.pick(&[1, 33, 32, 100, 256, 768, 2048]);
    let (weight, bias) = (b.vector("norm", &[width], 1.0), b.sometimes("bias", &[width]));
    let x = b.boundary(row(width), DType::F32);
    let eps = b.pick(&[1e-6, 1e-5, 1e-2]);
    b.graph.outputs = b.graph.push(None, "norm", Op::LayerNorm { weight, bias, eps }, &[x])?;
    let (t, bound) = (b.tokens(), b.pick(&[1e-2, 1.0, 100.0]));
    b.note("T", t);
    b.note("width", width);
    b.note("bias", bias.is_some());
    Ok((vec![b.step(0, t, &[], bound)], t))
}

pub(super) fn position_scale(b: &mut Builder) -> Result<Steps, BackendError> {
    let width = b.pick(&[1, 33, 128, 2048]);
    let x = b.boundary(row(width), DType::F32);
    let attrs = PositionScaleAttrs {
        scale: b.pick(&[0.1, 0.5, -0.01]),
        length: b.pick(&[1, 8, 8192]),
        offset: b.between(0, 1),
    };
    let positions = b.graph.inputs.positions;
    b.graph.outputs = b.graph.push(None, "temperature", Op::PositionScale(attrs), &[x, positions])?;
    let (t, first) = (b.tokens(), b.pick(&[0, 1, 8190, 40000]));
    b.note("T", t);
    b.note("position", first);
    b.note("width", width);
    Ok((vec![b.step(first, t, &[], 1.0)], first as usize + t))
}

pub(super) fn mul_heads(b: &mut Builder) -> Result<Steps, BackendError> {
    let (heads, width) = (b.pick(&[1, 2, 3, 16, 64]), b.pick(&[1, 33, 64, 128]));
    let x = b.boundary(row(heads * width), DType::F32);
    let factors = b.boundary(row(heads), DType::F32);
    b.graph.outputs = b.graph.push(None, "mul_heads", Op::MulHeads, &[x, factors])?;
    let t = b.tokens();
    b.note("T", t);
    b.note("heads", heads);
    b.note("width", width);
    Ok((vec![b.step(0, t, &[], 1.0)], t))
}

/// A table for heads of `d` elements, of which it turns all or some, and how they are paired.
pub(super) fn turn(b: &mut Builder, d: usize) -> (RopeTableId, RopePairing) {
    let even = d / 2 * 2;
    let dims = if b.one_in(3) { b.pick(&[2, even / 4 * 2, even - 2]).max(2) } else { even };
    let pairing = b.pick(&[RopePairing::Half, RopePairing::Interleaved]);
    let scaling = b.pick(&[RopeScaling::None, RopeScaling::None, RopeScaling::Linear { factor: 4.0 }]);
    let theta = b.pick(&[1e4, 1e6, 1e7]);
    let (behind, back) = (b.pick(&[0, 0, 3]), b.one_in(4));
    b.note("behind", behind);
    b.note("back", back);
    b.note("dims", format!("{dims}/{d}"));
    b.note("pairing", format!("{pairing:?}"));
    (b.graph.add_rope_table(RopeSpec { theta, dims, scaling, divisors: Vec::new(), behind, back }), pairing)
}

pub(super) fn rope(b: &mut Builder) -> Result<Steps, BackendError> {
    let (heads, d) = (b.pick(&[1, 2, 3, 8]), b.pick(&[32, 64, 128, 80, 96, 36, 33, 256]));
    let (table, pairing) = turn(b, d);
    let x = b.boundary(row(heads * d), DType::F32);
    let positions = b.graph.inputs.positions;
    b.graph.outputs = b.graph.push(None, "rope", Op::Rope { table, pairing, heads }, &[x, positions])?;
    let t = b.tokens();
    let first = b.pick(&[0, 0, 1, 4095, 32767]);
    b.note("T", t);
    b.note("position", first);
    b.note("heads", heads);
    Ok((vec![b.step(first, t, &[], 1.0)], first as usize + t))
}

/// Any choice of up to `most_experts`.
pub(super) fn choice(b: &mut Builder, most_experts: usize) -> RouterAttrs {
    let counts = [1, 4, 16, 33, 40, 60, 64, 96, 128, 160, 256, 384, 512, 1024];
    let fitting = counts.iter().filter(|n| **n <= most_experts).count();
    let num_experts = b.pick(&counts[..fitting]);
    let most = if b.one_in(8) { 32 } else { 8 };
    let num_experts_per_tok = b.between(1, most).min(num_experts);
    let sparse = b.one_in(8);
    let gate = match sparse {
        true => GateKind::SparseMixer,
        false => b.pick(&[
            GateKind::Softmax,
            GateKind::Sigmoid,
            GateKind::SoftmaxAfterTopK,
            GateKind::SqrtSoftplus,
        ]),
    };
    let selection_bias = if sparse { None } else { b.sometimes("bias", &[num_experts]) };
    let norm_topk_prob = b.one_in(2) && !sparse;
    let scale = b.pick(&[1.0, 2.5, 0.5]);
    b.note("E", num_experts);
    b.note("K", num_experts_per_tok);
    b.note("gate", format!("{gate:?}"));
    b.note("bias", selection_bias.is_some());
    b.note("norm", norm_topk_prob);
    b.note("scale", scale);
    let groups = if sparse { None } else { groups(b, num_experts, num_experts_per_tok) };
    b.note("groups", format!("{groups:?}"));
    let expert_scale = b.one_in(6).then(|| b.vector("expert_scale", &[num_experts], 1.0));
    b.note("expert_scale", expert_scale.is_some());
    RouterAttrs {
        num_experts,
        num_experts_per_tok,
        gate,
        norm_topk_prob,
        scale,
        selection_bias,
        groups,
        expert_scale,
    }
}

/// Now and then groups of the experts, of which those that are chosen from have enough.
fn groups(b: &mut Builder, experts: usize, per_tok: usize) -> Option<ExpertGroups> {
    let n_group = b.pick(&[2, 4, 8, 3]);
    if !b.one_in(3) || !experts.is_multiple_of(n_group) || experts / n_group < 2 {
        return None;
    }
    let topk_group = b.between(per_tok.div_ceil(experts / n_group), n_group);
    Some(ExpertGroups { n_group, topk_group, score: b.pick(&[GroupScore::Best, GroupScore::BestTwo]) })
}

/// Logits [tokens, E] whose choice does not hang on rounding: without a bias some tokens have exact ties, which go to the
/// lower id; with one, or with groups, values that are chosen by lie a millionth apart and more.
pub(super) fn logits(b: &mut Builder, attrs: &RouterAttrs, tokens: usize) -> HostTensor {
    let ties = attrs.selection_bias.is_none() && attrs.groups.is_none();
    let bias: Vec<f32> = match attrs.selection_bias {
        Some(_) => {
            let bytes = b.weights.get("bias").map_or(&[][..], Vec::as_slice);
            bytes.chunks_exact(4).map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect()
        }
        None => vec![0.0; attrs.num_experts],
    };
    let mut all = Vec::with_capacity(tokens * attrs.num_experts);
    for token in 0..tokens {
        let row = loop {
            let mut row = b.floats(attrs.num_experts, 3.0);
            if ties && token % 3 == 0 {
                row.iter_mut().for_each(|v| *v = v.round());
            }
            if ties || is_clear(attrs, &row, &bias) {
                break row;
            }
        };
        all.extend(row);
    }
    HostTensor::f32(vec![tokens, attrs.num_experts], all)
}

/// Whether the best of the values lie apart from each other and from the first that is not among them.
fn lie_apart(mut values: Vec<f64>, best: usize) -> bool {
    values.sort_by(|a, b| b.total_cmp(a));
    values.windows(2).take(best).all(|w| w[0] - w[1] > 1e-6)
}

/// Whether what the choice goes by lies apart: gate + bias, of all experts, and the scores of groups.
fn is_clear(attrs: &RouterAttrs, logits: &[f32], bias: &[f32]) -> bool {
    let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
    let gate = |l: f64| match attrs.gate {
        GateKind::Softmax => l.exp() / total,
        GateKind::Sigmoid => 1.0 / (1.0 + (-l).exp()),
        GateKind::SqrtSoftplus => l.exp().ln_1p().sqrt(),
        GateKind::SoftmaxAfterTopK | GateKind::SparseMixer => l,
    };
    let values = logits.iter().zip(bias).map(|(l, b)| gate(f64::from(*l)) + f64::from(*b));
    let values: Vec<f64> = values.collect();
    let Some(ExpertGroups { n_group, topk_group, score }) = attrs.groups else {
        return lie_apart(values, attrs.num_experts_per_tok);
    };
    let of_group = |group: &[f64]| {
        let mut group = group.to_vec();
        group.sort_by(|a, b| b.total_cmp(a));
        group[0] + if score == GroupScore::BestTwo { group[1] } else { 0.0 }
    };
    let groups: Vec<(f64, &[f64])> =
        values.chunks_exact(attrs.num_experts / n_group).map(|group| (of_group(group), group)).collect();
    let mut scores: Vec<f64> = groups.iter().map(|(score, _)| *score).collect();
    scores.sort_by(|a, b| b.total_cmp(a));
    let open = groups.iter().filter(|(score, _)| *score >= scores[topk_group - 1]);
    let open: Vec<f64> = open.flat_map(|(_, group)| group.iter().copied()).collect();
    lie_apart(scores, topk_group) && lie_apart(open, attrs.num_experts_per_tok)
}

pub(super) fn router(b: &mut Builder) -> Result<Steps, BackendError> {
    let attrs = choice(b, 1024);
    let x = b.graph.add_boundary(row(attrs.num_experts), DType::F32);
    b.graph.outputs = b.graph.push(None, "router_topk", Op::Router(attrs.clone()), &[x])?;
    let t = b.tokens();
    let mut step = b.step(0, t, &[], 1.0);
    step.boundary.push((x, logits(b, &attrs, t)));
    b.note("T", t);
    Ok((vec![step], t))
}

/// The best experts' runs, of which one token may have the same twice.
pub(super) fn given_experts(b: &mut Builder) -> Result<Steps, BackendError> {
    let num_experts = b.pick(&[4, 16, 60, 128, 512]);
    let given = b.between(1, 8).min(num_experts);
    let (vocab, divisor) = (17, b.pick(&[1, 2, 4]));
    // Now and then an id beyond the last.
    let table = b.one_in(3).then(|| b.table("table", &[vocab, given], num_experts * divisor + 1));
    let attrs = GivenExpertsAttrs {
        num_experts,
        num_experts_per_tok: b.between(1, given),
        gate: b.pick(&[GateKind::Softmax, GateKind::Sigmoid, GateKind::SqrtSoftplus]),
        norm_topk_prob: b.one_in(2),
        scale: b.pick(&[1.0, 0.05]),
        divisor,
        table,
    };
    b.note("E", num_experts);
    b.note("K", format!("{} of {given}", attrs.num_experts_per_tok));
    b.note("gate", format!("{:?}", attrs.gate));
    b.note("norm", attrs.norm_topk_prob);
    b.note("divisor", attrs.divisor);
    let logits = b.boundary(row(num_experts), DType::F32);
    b.note("table", table.is_some());
    let ids = match table {
        Some(_) => b.graph.inputs.tokens,
        None => b.graph.add_boundary(row(given), DType::U32),
    };
    b.graph.outputs = b.graph.push(None, "given_experts", Op::GivenExperts(attrs), &[logits, ids])?;
    let t = b.tokens();
    let mut step = b.step(0, t, &[], 3.0);
    match table {
        Some(_) => {
            step.tokens =
                (0..t).map(|_| moe_run_graph::ids::TokenId(b.between(0, vocab - 1) as u32)).collect()
        }
        None => step.boundary.push((ids, b.chosen(t, given, num_experts))),
    }
    b.note("T", t);
    Ok((vec![step], t))
}

/// An activation, with numbers of its own where it has some.
pub(super) fn activation(b: &mut Builder) -> ActivationFn {
    let clamped =
        ActivationFn::ClampedSwiglu { alpha: b.pick(&[1.702, 1.0, 0.5]), limit: b.pick(&[7.0, 2.5]) };
    let limit = b.pick(&[7.0, 0.9]);
    let limited = match b.one_in(2) {
        true => ActivationFn::LimitedSwiglu { limit },
        false => ActivationFn::BoundedSwiglu { limit },
    };
    let others = [ActivationFn::GeluTanh, ActivationFn::Sigmoid, ActivationFn::Relu, ActivationFn::Softplus];
    let activation = match b.between(0, 9) {
        0..5 => ActivationFn::Silu,
        5..7 => clamped,
        7 => limited,
        _ => b.pick(&others),
    };
    b.note("activation", format!("{activation:?}"));
    activation
}

pub(super) fn gated_act(b: &mut Builder) -> Result<Steps, BackendError> {
    let (per_tok, width) = (b.pick(&[0, 1, 4, 8]), b.pick(&[1, 33, 32, 256, 768]));
    let shape = if per_tok == 0 {
        row(width)
    } else {
        Shape::new(&[Dim::Tokens, Dim::Fixed(per_tok), Dim::Fixed(width)])
    };
    let gate = b.boundary(shape.clone(), DType::F32);
    let up = b.boundary(shape, DType::F32);
    let activation = activation(b);
    b.graph.outputs = b.graph.push(None, "swiglu", Op::GatedAct { activation }, &[gate, up])?;
    let t = b.tokens();
    b.note("T", t);
    b.note("K", per_tok);
    b.note("width", width);
    Ok((vec![b.step(0, t, &[], 8.0)], t))
}

pub(super) fn expert_combine(b: &mut Builder) -> Result<Steps, BackendError> {
    let (per_tok, width) = (b.pick(&[1, 2, 3, 4, 7, 8, 32]), b.pick(&[1, 33, 32, 256, 2048]));
    let y = b.boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(per_tok), Dim::Fixed(width)]), DType::F32);
    let weights = b.boundary(row(per_tok), DType::F32);
    b.graph.outputs = b.graph.push(None, "combine", Op::ExpertCombine, &[y, weights])?;
    let t = b.tokens();
    b.note("T", t);
    b.note("K", per_tok);
    b.note("width", width);
    Ok((vec![b.step(0, t, &[], 1.0)], t))
}

pub(super) fn elementwise(b: &mut Builder, op: Op) -> Result<Steps, BackendError> {
    let width = b.pick(&[1, 31, 32, 256, 2048]);
    let x = b.boundary(row(width), DType::F32);
    let y = b.boundary(row(width), DType::F32);
    b.graph.outputs = b.graph.push(None, "elementwise", op, &[x, y])?;
    let t = b.tokens();
    b.note("T", t);
    b.note("width", width);
    Ok((vec![b.step(0, t, &[], 1.0)], t))
}

pub(super) fn pointwise(b: &mut Builder) -> Result<Steps, BackendError> {
    let width = b.pick(&[1, 31, 32, 256, 5000]);
    let x = b.boundary(row(width), DType::F32);
    let function = b.pick(&[
        PointwiseFn::Scale(0.125),
        PointwiseFn::Scale(-1.7),
        PointwiseFn::SoftCap(30.0),
        PointwiseFn::SoftCap(0.5),
        PointwiseFn::Clamp(0.6),
        PointwiseFn::Clamp(8.0),
        PointwiseFn::ReluSquared,
    ]);
    b.graph.outputs = b.graph.push(None, "pointwise", Op::Pointwise { function }, &[x])?;
    let (t, bound) = (b.tokens(), b.pick(&[1.0, 100.0]));
    b.note("T", t);
    b.note("width", width);
    b.note("function", format!("{function:?}"));
    Ok((vec![b.step(0, t, &[], bound)], t))
}

pub(super) fn concat(b: &mut Builder) -> Result<Steps, BackendError> {
    let heads = b.pick(&[1, 1, 2, 3, 16]);
    let (n, m) = (b.pick(&[1, 32, 33, 512]), b.pick(&[1, 8, 64, 31]));
    let x = b.boundary(row(heads * n), DType::F32);
    let y = b.boundary(row(heads * m), DType::F32);
    b.graph.outputs = b.graph.push(None, "concat", Op::Concat { heads }, &[x, y])?;
    let t = b.tokens();
    b.note("T", t);
    b.note("heads", heads);
    b.note("widths", format!("{n}+{m}"));
    Ok((vec![b.step(0, t, &[], 1.0)], t))
}

pub(super) fn slice(b: &mut Builder) -> Result<Steps, BackendError> {
    let (heads, width) = (b.pick(&[1, 2, 3, 16]), b.pick(&[1, 33, 64, 160]));
    let start = b.between(0, width - 1);
    let len = b.between(1, width - start);
    let x = b.boundary(row(heads * width), DType::F32);
    b.graph.outputs = b.graph.push(None, "slice", Op::Slice { heads, start, len }, &[x])?;
    let t = b.tokens();
    b.note("T", t);
    b.note("heads", heads);
    b.note("part", format!("{start}+{len} of {width}"));
    Ok((vec![b.step(0, t, &[], 1.0)], t))
}

pub(super) fn get_rows(b: &mut Builder) -> Result<Steps, BackendError> {
    let width = b.pick(&[1, 33, 32, 256, 2048]);
    let x = b.boundary(row(width), DType::F32);
    let rows = b.graph.inputs.logits_rows;
    b.graph.outputs = b.graph.push(None, "logits_rows", Op::GetRows, &[x, rows])?;
    let t = b.tokens();
    let r = b.between(1, t.min(9));
    let chosen: Vec<u32> = (0..r).map(|_| b.between(0, t - 1) as u32).collect();
    b.note("T", t);
    b.note("R", r);
    b.note("width", width);
    Ok((vec![b.step(0, t, &chosen, 1.0)], t))
}

/// What a tap shows of two values side by side, one of them computed, and what is computed behind it.
pub(super) fn tap(b: &mut Builder) -> Result<Steps, BackendError> {
    let (width, other) = (b.pick(&[1, 33, 32, 256]), b.pick(&[1, 32, 100]));
    let x = b.boundary(row(width), DType::F32);
    let y = b.boundary(row(width), DType::F32);
    let beside = b.boundary(row(other), DType::F32);
    let sum = b.graph.push(None, "elementwise", Op::Add, &[x, y])?[0];
    b.graph.tap(None, Stage::Embedding, &[sum, beside])?;
    b.graph.outputs = b.graph.push(None, "elementwise", Op::Mul, &[sum, y])?;
    let t = b.tokens();
    b.note("T", t);
    b.note("width", format!("{width}+{other}"));
    Ok((vec![b.step(0, t, &[], 1.0)], t))
}
