//! Cases of the groups of experts.

use super::super::attention::Steps;
use super::super::small::{activation, choice, logits, row};
use super::{
    Builder, HIDDEN_SIZES, LAYER, Widths, outputs, plain_steps, post_norm, project, row_norm, sigmoid, steps,
};
use moe_run_graph::ir::{DType, Dim, Op, PointwiseFn, Shape, ValueId};
use moe_run_runtime::error::BackendError;

/// Experts, how many a token takes, and rows of each.
fn experts(b: &mut Builder) -> (usize, usize) {
    let all = b.pick(&[1, 4, 8, 33, 60, 64]);
    let per_tok = b.between(1, 8).min(all);
    (all, per_tok)
}

/// An experts' matmul, now and then with a bias.
fn project_experts(
    b: &mut Builder,
    widths: &Widths,
    name: &'static str,
    inputs: [ValueId; 2],
    experts: usize,
    out: usize,
) -> Result<ValueId, BackendError> {
    let weight = widths.slice(b, name, Some(experts), out);
    let bias = b.one_in(6).then(|| b.vector(&format!("{name} bias"), &[experts, out], 0.0));
    if bias.is_some() {
        b.note(name, "biased");
    }
    Ok(b.graph.push(LAYER, name, Op::ExpertMatMul { weight, bias }, &inputs)?[0])
}

pub(super) fn router_gate_up(b: &mut Builder) -> Result<Steps, BackendError> {
    let widths = Widths::of(b, HIDDEN_SIZES);
    let width = widths.hidden_size;
    let mut x = b.boundary(row(width), DType::F32);
    let mut inner = Vec::new();
    if b.one_in(3) {
        b.note("post-norm", true);
        x = post_norm(b, x, width, &mut inner)?;
        inner.push(x);
    }
    let normed = row_norm(b, "router_norm", x, width, 1e-6)?;
    inner.push(normed);
    let experts = b.pick(&[4, 8, 33, 60, 128]);
    b.note("E", experts);
    let logits = project(b, &widths, "router", normed, experts)?;
    // The best weights in order are as steady as the logits, whoever they belong to.
    let routed = b.graph.push(LAYER, "router_topk", sigmoid(experts, 2), &[logits])?;
    let mut last = vec![logits, routed[1]];
    if b.one_in(2) {
        b.note("shared gate", true);
        let logit = project(b, &widths, "shared_expert_gate", normed, 1)?;
        let factor = b.graph.push(LAYER, "shared_expert_sigmoid", sigmoid(1, 1), &[logit])?;
        last.extend([logit, factor[1]]);
    }
    // Gate and up under the router's norm, or one of their own, with a third for others or none.
    let norms = b.pick(&["one", "two", "three"]);
    b.note("norms", norms);
    let mut read = normed;
    if norms != "one" {
        read = row_norm(b, "mlp_norm", x, width, 1e-5)?;
        inner.push(read);
    }
    if norms == "three" {
        last.push(row_norm(b, "experts_norm", x, width, 1e-6)?);
    }
    let out = b.pick(&[16, 33, 64, 100, 256]);
    b.note("out", out);
    let mut products = [read; 2];
    for (product, name) in products.iter_mut().zip(["gate_proj", "up_proj"]) {
        let weight = widths.slice(b, name, None, out);
        *product = b.graph.push(LAYER, name, Op::MatMul { weight, bias: None, scale: None }, &[read])?[0];
    }
    let op = Op::GatedAct { activation: activation(b) };
    let acted = b.graph.push(LAYER, "act", op, &products)?;
    inner.extend(products.into_iter().chain([acted[0]]));
    last.push(acted[1]);
    outputs(b, &inner, &last);
    Ok(plain_steps(b))
}

pub(super) fn route_gate_up(b: &mut Builder) -> Result<Steps, BackendError> {
    let widths = Widths::of(b, &[64, 96, 128, 256, 512, 768]);
    let attrs = choice(b, 160);
    let out = b.pick(&[16, 20, 32, 48]);
    b.note("out", out);
    let scores = b.graph.add_boundary(row(attrs.num_experts), DType::F32);
    let x = b.boundary(row(widths.hidden_size), DType::F32);
    let routed = b.graph.push(LAYER, "router_topk", Op::Router(attrs.clone()), &[scores])?;
    let gate = project_experts(b, &widths, "gate_proj", [x, routed[0]], attrs.num_experts, out)?;
    let up = project_experts(b, &widths, "up_proj", [x, routed[0]], attrs.num_experts, out)?;
    let op = Op::GatedAct { activation: activation(b) };
    let acted = b.graph.push(LAYER, "swiglu", op, &[gate, up])?;
    outputs(b, &[gate, up, acted[0]], &[routed[0], routed[1], acted[1]]);
    let mut at = 0;
    let mut all = Vec::new();
    for tokens in steps(b) {
        let mut step = b.step(at as u32, tokens, &[], 1.0);
        step.boundary.push((scores, logits(b, &attrs, tokens)));
        all.push(step);
        at += tokens;
    }
    Ok((all, at))
}

pub(super) fn down_combine(b: &mut Builder) -> Result<Steps, BackendError> {
    let widths = Widths::of(b, &[32, 64, 96, 128, 256, 512, 768]);
    let (count, per_tok) = experts(b);
    let out = b.pick(&[8, 20, 33, 64, 96]);
    b.note("E", count);
    b.note("K", per_tok);
    b.note("out", out);
    let shape = Shape::new(&[Dim::Tokens, Dim::Fixed(per_tok), Dim::Fixed(widths.hidden_size)]);
    // Now and then all experts of a token read one row.
    let x = if b.one_in(6) { row(widths.hidden_size) } else { shape };
    let x = b.boundary(x, DType::F32);
    let weights = b.boundary(row(per_tok), DType::F32);
    let residual = b.boundary(row(out), DType::F32);
    let ids = b.graph.add_boundary(row(per_tok), DType::U32);
    let down = project_experts(b, &widths, "down_proj", [x, ids], count, out)?;
    let (mut inner, mut means) = (vec![down], Vec::new());
    let mut sum = b.graph.push(LAYER, "combine", Op::ExpertCombine, &[down, weights])?[0];
    let mut add = |b: &mut Builder, name, sum: &mut ValueId, other| {
        inner.push(*sum);
        let operands = if b.one_in(2) { [other, *sum] } else { [*sum, other] };
        *sum = b.graph.push(LAYER, name, Op::Add, &operands)?[0];
        Ok::<(), BackendError>(())
    };
    let shared = b.pick(&["none", "none", "bare", "gated"]);
    b.note("shared", shared);
    let mut beside = Vec::new();
    if shared != "none" {
        // Its output, or what its own down_proj makes.
        let of_product = b.one_in(2);
        b.note("shared down", of_product);
        let width = if of_product { widths.hidden_size } else { out };
        let mut x = b.boundary(row(width), DType::F32);
        if of_product {
            x = project(b, &widths, "shared_expert_down_proj", x, out)?;
            beside.push(x);
        }
        if shared == "gated" {
            let logit = b.boundary(row(1), DType::F32);
            let factor = b.graph.push(LAYER, "shared_expert_sigmoid", sigmoid(1, 1), &[logit])?[1];
            x = b.graph.push(LAYER, "shared_expert_gated", Op::ExpertCombine, &[x, factor])?[0];
        }
        add(b, "add_shared_expert", &mut sum, x)?;
    }
    let mean = shared != "none" && b.one_in(4);
    b.note("mean", mean);
    if mean {
        let function = PointwiseFn::Scale(0.5);
        means.push(sum);
        sum = b.graph.push(LAYER, "expert_mean", Op::Pointwise { function }, &[sum])?[0];
    }
    if !b.one_in(6) {
        add(b, "ffn_residual", &mut sum, residual)?;
    }
    inner.extend(means.into_iter().chain(beside));
    outputs(b, &inner, &[sum]);
    let mut at = 0;
    let mut all = Vec::new();
    for tokens in steps(b) {
        let mut step = b.step(at as u32, tokens, &[], 1.0);
        step.boundary.push((ids, b.chosen(tokens, per_tok, count)));
        all.push(step);
        at += tokens;
    }
    Ok((all, at))
}
