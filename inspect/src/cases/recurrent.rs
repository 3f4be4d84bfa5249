//! Cases of the ops that carry a state from token to token.

use super::Builder;
use super::attention::Steps;
use super::groups::{outputs, part};
use super::small::{activation, row};
use moe_run_graph::ir::{
    CausalConvAttrs, DType, DecayOf, DeltaRuleAttrs, HeadMap, LayerIdx, Lifetime, Op, SsmScanAttrs,
    StateRole, ValueId,
};
use moe_run_runtime::error::BackendError;

/// A prompt in two parts and single tokens: the past crosses steps, and may be longer than one.
fn in_parts(b: &mut Builder) -> Steps {
    let (mut steps, mut at) = (Vec::new(), 0);
    for tokens in [b.tokens(), 2, 1, 1] {
        steps.push(b.step(at as u32, tokens, &[], 1.0));
        at += tokens;
    }
    (steps, at)
}

pub(super) fn causal_conv(b: &mut Builder) -> Result<Steps, BackendError> {
    let channels = b.pick(&[1, 33, 64, 100, 512]);
    let kernel = b.pick(&[2, 3, 4, 7]);
    let weight = b.vector("conv", &[channels, kernel], 0.0);
    let bias = b.sometimes("bias", &[channels]);
    let activation = if b.one_in(2) { Some(activation(b)) } else { None };
    let layer = LayerIdx(0);
    b.graph.num_layers = 1;
    let state = b.graph.add_state(StateRole::Conv, layer, channels, kernel - 1, Lifetime::PerSequence);
    let x = b.boundary(row(channels), DType::F32);
    let attrs = CausalConvAttrs { weight, bias, activation, state };
    let inputs = [x, b.graph.inputs.positions, b.graph.inputs.sequence];
    b.graph.outputs = b.graph.push(Some(layer), "conv", Op::CausalConv(attrs), &inputs)?;
    b.note("C", channels);
    b.note("k", kernel);
    Ok(in_parts(b))
}

pub(super) fn delta_gates(b: &mut Builder) -> Result<Steps, BackendError> {
    let (heads, of_head) = (b.pick(&[1, 4, 32, 48]), b.pick(&[1, 1, 16, 128]));
    let limit = b.pick(&[None, None, Some(-5.0)]);
    let a = b.vector("a", &[heads], if limit.is_some() { 1.0 } else { -1.0 });
    let dt_bias = b.vector("dt_bias", &[heads * of_head], 0.0);
    let (beta, dt) = (b.boundary(row(heads), DType::F32), b.boundary(row(heads * of_head), DType::F32));
    let op = Op::DeltaGates { a, dt_bias, bound: limit };
    b.graph.outputs = b.graph.push(None, "delta_gates", op, &[beta, dt])?;
    let (t, bound) = (b.tokens(), b.pick(&[1.0, 30.0]));
    b.note("T", t);
    b.note("heads", heads);
    b.note("w", of_head);
    b.note("bound", format!("{limit:?}"));
    Ok((vec![b.step(0, t, &[], bound)], t))
}

/// The gates come from DeltaGates: a decay is below 1.
pub(super) fn delta_rule(b: &mut Builder) -> Result<Steps, BackendError> {
    let rule = rule_of(b, |b, width, _| Ok(b.boundary(row(width), DType::F32)))?;
    b.graph.outputs = rule.outputs;
    Ok(in_parts(b))
}

/// The same where what the gates are made of is a part of something wider now and then.
pub(super) fn delta_step(b: &mut Builder) -> Result<Steps, BackendError> {
    let mut parts = Vec::new();
    let rule = rule_of(b, |b, width, heads| part(b, "of gates", width, heads, &mut parts))?;
    parts.extend(rule.gates);
    outputs(b, &parts, &rule.outputs);
    Ok(in_parts(b))
}

/// The rule's gates and its output.
struct Rule {
    gates: Vec<ValueId>,
    outputs: Vec<ValueId>,
}

/// A rule of any heads; `gate_input` gives what its gates are made of, so wide and of so many heads.
fn rule_of(
    b: &mut Builder,
    mut gate_input: impl FnMut(&mut Builder, usize, usize) -> Result<ValueId, BackendError>,
) -> Result<Rule, BackendError> {
    let (num_key_heads, each) = (b.pick(&[1, 2, 3]), b.pick(&[1, 2, 3]));
    let num_value_heads = num_key_heads * each;
    let (key_head_dim, value_head_dim) = (b.pick(&[16, 64, 128, 33, 20]), b.pick(&[16, 64, 128, 33, 83]));
    let head_map = b.pick(&[HeadMap::Tiled, HeadMap::Grouped]);
    let decays = if b.one_in(3) { key_head_dim } else { 1 };
    let (layer, elems) = (LayerIdx(0), key_head_dim * value_head_dim);
    b.graph.num_layers = 1;
    let state = b.graph.add_state(StateRole::Ssm, layer, num_value_heads, elems, Lifetime::PerSequence);
    let attrs = DeltaRuleAttrs {
        num_key_heads,
        num_value_heads,
        key_head_dim,
        value_head_dim,
        head_map,
        eps: b.pick(&[1e-6, 1e-2]),
        scale: (key_head_dim as f32).powf(-0.5),
        state,
    };
    let a = b.vector("a", &[num_value_heads], -0.6);
    let dt_bias = b.vector("dt_bias", &[num_value_heads * decays], 0.0);
    let qkv = b.boundary(row(2 * attrs.key_width() + attrs.value_width()), DType::F32);
    let beta = gate_input(b, num_value_heads, num_key_heads)?;
    let dt = gate_input(b, num_value_heads * decays, num_key_heads)?;
    let bound = b.one_in(4).then_some(-5.0);
    let op = Op::DeltaGates { a, dt_bias, bound };
    let gates = b.graph.push(Some(layer), "delta_gates", op, &[beta, dt])?;
    let inputs = [qkv, gates[0], gates[1], b.graph.inputs.positions, b.graph.inputs.sequence];
    let outputs = b.graph.push(Some(layer), "delta_rule", Op::DeltaRule(attrs), &inputs)?;
    b.note("heads", format!("{num_value_heads} on {num_key_heads}, {head_map:?}"));
    b.note("dims", format!("{key_head_dim}x{value_head_dim}"));
    b.note("decays", decays);
    Ok(Rule { gates, outputs })
}

pub(super) fn ssm_scan(b: &mut Builder) -> Result<Steps, BackendError> {
    let state_size = b.pick(&[16, 128, 37]);
    let (decay_of, num_heads, n_groups, head_dim) = if b.one_in(3) {
        (DecayOf::Element, b.pick(&[1, 64, 130, 37]), 1, 1)
    } else {
        let (n_groups, each) = (b.pick(&[1, 2, 4]), b.pick(&[1, 2, 5]));
        (DecayOf::Head, n_groups * each, n_groups, b.pick(&[16, 32, 64, 7]))
    };
    let layer = LayerIdx(0);
    b.graph.num_layers = 1;
    let elems = head_dim * state_size;
    let state = b.graph.add_state(StateRole::Ssm, layer, num_heads, elems, Lifetime::PerSequence);
    let a = match decay_of {
        DecayOf::Head => b.vector("a", &[num_heads], -0.6),
        DecayOf::Element => b.vector("a", &[num_heads, state_size], -0.6),
    };
    let d = b.vector("d", &[num_heads], 0.5);
    let dt_bias = b.vector("dt_bias", &[num_heads], 0.0);
    let attrs = SsmScanAttrs { num_heads, head_dim, state_size, n_groups, decay_of, a, d, dt_bias, state };
    let xbc = b.boundary(row(attrs.x_width() + 2 * attrs.group_width()), DType::F32);
    let dt = b.boundary(row(num_heads), DType::F32);
    let inputs = [xbc, dt, b.graph.inputs.positions, b.graph.inputs.sequence];
    b.graph.outputs = b.graph.push(Some(layer), "ssm_scan", Op::SsmScan(attrs), &inputs)?;
    b.note("heads", format!("{num_heads} on {n_groups}"));
    b.note("state", format!("{head_dim}x{state_size}, a decay a {decay_of:?}"));
    Ok(in_parts(b))
}
