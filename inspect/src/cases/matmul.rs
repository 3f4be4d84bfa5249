//! Cases of the ops that read weights of any format: embed, matmul, expert_matmul.

use super::{Builder, CaseStep};
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{DType, Dim, Op, Shape, WeightHome, WeightSlice};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::HostTensor;

type Steps = (Vec<CaseStep>, usize);

/// Row lengths that fit every format.
const INNER: &[usize] = &[256, 512, 768, 1024];

pub(super) fn embed(b: &mut Builder) -> Result<Steps, BackendError> {
    let (vocab, width) = (b.between(2, 300), b.pick(INNER));
    let tensor = b.matrix("table", &[vocab, width]);
    let table = WeightSlice { tensor, rows: 0..vocab, experts: None, home: WeightHome::Device };
    let tokens = b.graph.inputs.tokens;
    b.graph.outputs = b.graph.push(None, "embed_tokens", Op::Embed { table }, &[tokens])?;
    let t = b.tokens();
    let mut step = b.step(0, t, &[], 1.0);
    step.tokens = (0..t).map(|_| TokenId(b.between(0, vocab - 1) as u32)).collect();
    b.note("T", t);
    Ok((vec![step], t))
}

pub(super) fn matmul(b: &mut Builder) -> Result<Steps, BackendError> {
    let (out, inner) = (b.pick(&[1, 3, 8, 17, 64, 100, 130, 257]), b.pick(INNER));
    let tensor = b.matrix("weight", &[out, inner]);
    // Now and then a slice of the rows, a bias, a scale.
    let rows = if out > 8 && b.between(0, 3) == 0 { 3..out - 2 } else { 0..out };
    let bias = if b.between(0, 3) == 0 { Some(b.vector("bias", &[rows.len()], 0.0)) } else { None };
    let scale = if b.between(0, 3) == 0 { Some(0.75) } else { None };
    let x = b.boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(inner)]), DType::F32);
    let weight = WeightSlice { tensor, rows: rows.clone(), experts: None, home: WeightHome::Device };
    b.graph.outputs = b.graph.push(None, "proj", Op::MatMul { weight, bias, scale }, &[x])?;
    let t = b.tokens();
    b.note("T", t);
    b.note("rows", format!("{rows:?}/{out}"));
    b.note("in", inner);
    Ok((vec![b.step(0, t, &[], 1.0)], t))
}

pub(super) fn expert_matmul(b: &mut Builder) -> Result<Steps, BackendError> {
    let experts = b.pick(&[1, 2, 8, 33, 128]);
    let per_tok = b.pick(&[1, 2, 8]).min(experts);
    let (out, inner) = (b.pick(&[1, 5, 16, 65]), b.pick(&[256, 512]));
    let tensor = b.matrix("weight", &[experts, out, inner]);
    let bias = if b.between(0, 3) == 0 { Some(b.vector("bias", &[experts, out], 0.0)) } else { None };
    let own_rows = b.between(0, 1) == 1;
    let ids_shape = Shape::new(&[Dim::Tokens, Dim::Fixed(per_tok)]);
    let x_shape = if own_rows {
        Shape::new(&[Dim::Tokens, Dim::Fixed(per_tok), Dim::Fixed(inner)])
    } else {
        Shape::new(&[Dim::Tokens, Dim::Fixed(inner)])
    };
    let x = b.boundary(x_shape, DType::F32);
    let ids = b.graph.add_boundary(ids_shape, DType::U32);
    let weight = WeightSlice { tensor, rows: 0..out, experts: Some(0..experts), home: WeightHome::Device };
    b.graph.outputs = b.graph.push(None, "experts_proj", Op::ExpertMatMul { weight, bias }, &[x, ids])?;
    let t = b.pick(&[1, 1, 2, 5, 9, 33, 257]);
    let mut step = b.step(0, t, &[], 1.0);
    let mut chosen = Vec::with_capacity(t * per_tok);
    for _ in 0..t {
        let mut all: Vec<u32> = (0..experts as u32).collect();
        for i in 0..per_tok {
            let j = b.between(i, experts - 1);
            all.swap(i, j);
        }
        chosen.extend_from_slice(&all[..per_tok]);
    }
    step.boundary.push((ids, HostTensor::u32(vec![t, per_tok], chosen)));
    b.note("T", t);
    b.note("E", experts);
    b.note("K", per_tok);
    b.note("out", out);
    b.note("in", inner);
    b.note("own_rows", own_rows);
    Ok((vec![step], t))
}
