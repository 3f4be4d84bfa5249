//! Cases of the ops without big weights.

use super::{Builder, CaseStep};
use crate::error::BackendError;
use moe_run_graph::ir::{
    ActivationFn, DType, Dim, GateKind, Op, RopePairing, RopeScaling, RopeSpec, RouterAttrs, Shape,
};

type Steps = (Vec<CaseStep>, usize);

fn row(n: usize) -> Shape {
    Shape::new(&[Dim::Tokens, Dim::Fixed(n)])
}

pub(super) fn rms_norm(b: &mut Builder) -> Result<Steps, BackendError> {
    let heads = b.pick(&[1, 1, 2, 8, 32]);
    let width = if heads == 1 { b.pick(&[32, 256, 768, 2048]) } else { b.pick(&[32, 64, 128]) };
    let weight = b.vector("norm", &[width], 1.0);
    let x = b.boundary(row(heads * width), DType::F32);
    b.graph.outputs = b.graph.push(None, "norm", Op::RmsNorm { weight, eps: 1e-6, heads }, &[x])?;
    let (t, bound) = (b.tokens(), b.pick(&[1e-3, 1.0, 100.0]));
    b.note("T", t);
    b.note("heads", heads);
    b.note("width", width);
    Ok((vec![b.step(0, t, &[], bound)], t))
}

pub(super) fn rope(b: &mut Builder) -> Result<Steps, BackendError> {
    let (heads, d) = (b.pick(&[1, 2, 8]), b.pick(&[32, 64, 128]));
    let dims = if b.between(0, 3) == 0 { d / 2 } else { d };
    let pairing = b.pick(&[RopePairing::Half, RopePairing::Half, RopePairing::Interleaved]);
    let scaling = b.pick(&[RopeScaling::None, RopeScaling::None, RopeScaling::Linear { factor: 4.0 }]);
    let theta = b.pick(&[1e4, 1e6, 1e7]);
    let table = b.graph.add_rope_table(RopeSpec { theta, dims, scaling, divisors: Vec::new() });
    let x = b.boundary(row(heads * d), DType::F32);
    let positions = b.graph.inputs.positions;
    b.graph.outputs = b.graph.push(None, "rope", Op::Rope { table, pairing, heads }, &[x, positions])?;
    let t = b.tokens();
    let first = b.pick(&[0, 0, 1, 4095, 32767]);
    b.note("T", t);
    b.note("position", first);
    b.note("dims", format!("{dims}/{d}"));
    b.note("pairing", format!("{pairing:?}"));
    Ok((vec![b.step(first, t, &[], 1.0)], first as usize + t))
}

pub(super) fn router(b: &mut Builder) -> Result<Steps, BackendError> {
    let num_experts = b.pick(&[1, 4, 16, 33, 64, 128, 256]);
    let num_experts_per_tok = b.pick(&[1, 2, 4, 8]).min(num_experts);
    let gate = b.pick(&[GateKind::Softmax, GateKind::Softmax, GateKind::Sigmoid, GateKind::SoftmaxAfterTopK]);
    let biased = gate == GateKind::Sigmoid && b.between(0, 1) == 0;
    let selection_bias = if biased { Some(b.vector("bias", &[num_experts], 0.0)) } else { None };
    let attrs = RouterAttrs {
        num_experts,
        num_experts_per_tok,
        gate,
        norm_topk_prob: b.between(0, 2) > 0,
        scale: b.pick(&[1.0, 2.5]),
        selection_bias,
    };
    let x = b.boundary(row(num_experts), DType::F32);
    b.graph.outputs = b.graph.push(None, "router_topk", Op::Router(attrs), &[x])?;
    let t = b.tokens();
    let mut step = b.step(0, t, &[], 3.0);
    // Without a bias the choice hangs on the logits themselves: some tokens get exact ties, which go to the lower id.
    if !biased {
        for (_, tensor) in &mut step.boundary {
            if let crate::TensorData::F32(data) = &mut tensor.data {
                for row in data.chunks_exact_mut(num_experts).step_by(3) {
                    row.iter_mut().for_each(|v| *v = v.round());
                }
            }
        }
    }
    b.note("T", t);
    b.note("E", num_experts);
    b.note("K", num_experts_per_tok);
    b.note("gate", format!("{gate:?}"));
    Ok((vec![step], t))
}

pub(super) fn gated_act(b: &mut Builder) -> Result<Steps, BackendError> {
    let (per_tok, width) = (b.pick(&[0, 1, 4, 8]), b.pick(&[32, 256, 768]));
    let shape = if per_tok == 0 {
        row(width)
    } else {
        Shape::new(&[Dim::Tokens, Dim::Fixed(per_tok), Dim::Fixed(width)])
    };
    let gate = b.boundary(shape.clone(), DType::F32);
    let up = b.boundary(shape, DType::F32);
    b.graph.outputs =
        b.graph.push(None, "swiglu", Op::GatedAct { activation: ActivationFn::Silu }, &[gate, up])?;
    let t = b.tokens();
    b.note("T", t);
    b.note("K", per_tok);
    b.note("width", width);
    Ok((vec![b.step(0, t, &[], 8.0)], t))
}

pub(super) fn expert_combine(b: &mut Builder) -> Result<Steps, BackendError> {
    let (per_tok, width) = (b.pick(&[1, 2, 4, 8]), b.pick(&[32, 256, 2048]));
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

pub(super) fn get_rows(b: &mut Builder) -> Result<Steps, BackendError> {
    let width = b.pick(&[32, 256, 2048]);
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
