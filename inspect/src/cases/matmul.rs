//! Cases of the ops that read weights of any format: embed, matmul, head_matmul, expert_matmul.

use super::Builder;
use super::attention::Steps;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{DType, Dim, Op, Shape, WeightHome, WeightSlice};
use moe_run_runtime::error::BackendError;

pub(super) fn embed(b: &mut Builder) -> Result<Steps, BackendError> {
    let (vocab, width) = (b.between(2, 300), b.inner());
    let tensor = b.matrix("table", &[vocab, width]);
    let rows = b.part(vocab);
    let table = WeightSlice { tensor, rows: rows.clone(), experts: None, home: WeightHome::Device };
    let scale = if b.one_in(3) { Some(b.pick(&[0.75, 12.0])) } else { None };
    let tokens = b.graph.inputs.tokens;
    b.graph.outputs = b.graph.push(None, "embed_tokens", Op::Embed { table, scale }, &[tokens])?;
    let t = b.tokens();
    let mut step = b.step(0, t, &[], 1.0);
    step.tokens = (0..t).map(|_| TokenId(b.between(0, rows.len() - 1) as u32)).collect();
    b.note("T", t);
    b.note("rows", format!("{rows:?}/{vocab}"));
    b.note("width", width);
    b.note("scale", format!("{scale:?}"));
    Ok((vec![step], t))
}

pub(super) fn matmul(b: &mut Builder) -> Result<Steps, BackendError> {
    let (out, inner) = (b.pick(&[1, 3, 8, 17, 64, 100, 130, 257]), b.inner());
    let tensor = b.matrix("weight", &[out, inner]);
    let rows = b.part(out);
    let bias = b.sometimes("bias", &[rows.len()]);
    let scale = if b.one_in(4) { Some(b.pick(&[0.75, 2.5])) } else { None };
    // Now and then each token has several rows.
    let each = if b.one_in(6) { Some(b.pick(&[1, 2, 5])) } else { None };
    let dims = [Some(Dim::Tokens), each.map(Dim::Fixed), Some(Dim::Fixed(inner))];
    let x = b.boundary(Shape(dims.into_iter().flatten().collect()), DType::F32);
    let weight = WeightSlice { tensor, rows: rows.clone(), experts: None, home: WeightHome::Device };
    b.graph.outputs = b.graph.push(None, "proj", Op::MatMul { weight, bias, scale }, &[x])?;
    let t = b.tokens();
    b.note("T", t);
    b.note("rows", format!("{rows:?}/{out}"));
    b.note("in", inner);
    b.note("each", format!("{each:?}"));
    b.note("bias", bias.is_some());
    b.note("scale", format!("{scale:?}"));
    Ok((vec![b.step(0, t, &[], 1.0)], t))
}

pub(super) fn head_matmul(b: &mut Builder) -> Result<Steps, BackendError> {
    let all = b.pick(&[1, 2, 3, 16, 20]);
    let heads = b.part(all);
    let out = b.pick(&[1, 5, 16, 65, 128]);
    let inner = b.inner().min(512);
    let tensor = b.matrix("weight", &[all, out, inner]);
    let rows = b.part(out);
    let transposed = b.one_in(2);
    let width = heads.len() * if transposed { rows.len() } else { inner };
    let x = b.boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(width)]), DType::F32);
    let weight =
        WeightSlice { tensor, rows: rows.clone(), experts: Some(heads.clone()), home: WeightHome::Device };
    b.graph.outputs = b.graph.push(None, "heads_proj", Op::HeadMatMul { weight, transposed }, &[x])?;
    let t = b.pick(&[1, 1, 2, 3, 5, 9, 17, 33, 65]);
    b.note("T", t);
    b.note("H", format!("{heads:?}/{all}"));
    b.note("rows", format!("{rows:?}/{out}"));
    b.note("in", inner);
    b.note("transposed", transposed);
    Ok((vec![b.step(0, t, &[], 1.0)], t))
}

pub(super) fn expert_matmul(b: &mut Builder) -> Result<Steps, BackendError> {
    let all = b.pick(&[1, 2, 8, 33, 60, 128]);
    let experts = b.part(all);
    let per_tok = b.pick(&[1, 2, 3, 5, 8]).min(experts.len());
    let out = b.pick(&[1, 5, 16, 65]);
    let inner = b.inner().min(512);
    let tensor = b.matrix("weight", &[all, out, inner]);
    let rows = b.part(out);
    let bias = b.sometimes("bias", &[experts.len(), rows.len()]);
    let own_rows = b.one_in(2);
    let ids_shape = Shape::new(&[Dim::Tokens, Dim::Fixed(per_tok)]);
    let x_shape = if own_rows {
        Shape::new(&[Dim::Tokens, Dim::Fixed(per_tok), Dim::Fixed(inner)])
    } else {
        Shape::new(&[Dim::Tokens, Dim::Fixed(inner)])
    };
    let x = b.boundary(x_shape, DType::F32);
    let ids = b.graph.add_boundary(ids_shape, DType::U32);
    let weight =
        WeightSlice { tensor, rows: rows.clone(), experts: Some(experts.clone()), home: WeightHome::Device };
    b.graph.outputs = b.graph.push(None, "experts_proj", Op::ExpertMatMul { weight, bias }, &[x, ids])?;
    let t = b.pick(&[1, 1, 2, 3, 5, 9, 17, 33, 257]);
    let mut step = b.step(0, t, &[], 1.0);
    step.boundary.push((ids, b.chosen(t, per_tok, experts.len())));
    b.note("T", t);
    b.note("E", experts.len());
    b.note("of", all);
    b.note("K", per_tok);
    b.note("rows", format!("{rows:?}/{out}"));
    b.note("in", inner);
    b.note("own_rows", own_rows);
    b.note("bias", bias.is_some());
    Ok((vec![step], t))
}
