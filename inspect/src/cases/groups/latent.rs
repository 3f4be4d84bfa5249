//! Cases of latent attention, and of what stands around post-norms.

use super::super::attention::Steps;
use super::super::small::{row, turn};
use super::{Builder, LAYER, Widths, norm, outputs, plain_steps, post_norm};
use moe_run_graph::ir::{
    AttentionAttrs, DType, LayerIdx, Lifetime, Op, PointwiseFn, PositionScaleAttrs, StateRole, ValueId,
    WeightHome, WeightSlice,
};
use moe_run_runtime::error::BackendError;

/// From the products of a layer to what its heads attend by and to.
pub(super) fn latent_heads(b: &mut Builder) -> Result<Steps, BackendError> {
    // Latents of queries and, in another format or the same, parts of queries that meet the keys'.
    let (of_queries, of_keys) = (Widths::of(b, &[64, 96, 256, 512]), Widths::of(b, &[32, 64, 128, 256]));
    let (heads, nope) = (b.pick(&[1, 2, 5, 16]), of_keys.hidden_size);
    let (pe, rank) = (b.pick(&[16, 32, 64]), b.pick(&[32, 64, 160, 512]));
    b.note("heads", heads);
    b.note("rank", rank);
    b.note("pe", pe);
    let (turns, transposed) = (!b.one_in(4), b.one_in(6));
    b.note("transposed", transposed);
    let d = nope + pe;
    let mut inner = Vec::new();
    let q = if b.one_in(2) {
        b.note("of a latent", true);
        let width = of_queries.hidden_size;
        let latent = b.boundary(row(width), DType::F32);
        let normed = norm(b, "q_a_norm", latent, width, 1, 1e-6)?;
        let weight = of_queries.slice(b, "q_b", None, heads * d);
        let op = Op::MatMul { weight, bias: None, scale: None };
        let q = b.graph.push(LAYER, "q_b_proj", op, &[normed])?[0];
        inner.extend([normed, q]);
        q
    } else {
        b.boundary(row(heads * d), DType::F32)
    };
    let (c, k_pe) = (b.boundary(row(rank), DType::F32), b.boundary(row(pe), DType::F32));
    let part = |b: &mut Builder, name, start, len| {
        Ok::<ValueId, BackendError>(b.graph.push(LAYER, name, Op::Slice { heads, start, len }, &[q])?[0])
    };
    let (q_nope, mut q_pe) = (part(b, "q_nope", 0, nope)?, part(b, "q_pe", nope, pe)?);
    let c = norm(b, "kv_a_norm", c, rank, 1, 1e-5)?;
    inner.extend([q_nope, q_pe, c]);
    let mut k_pe = k_pe;
    if turns {
        let (table, pairing) = turn(b, pe);
        let positions = b.graph.inputs.positions;
        let rope = |b: &mut Builder, name, x, heads| {
            let op = Op::Rope { table, pairing, heads };
            Ok::<ValueId, BackendError>(b.graph.push(LAYER, name, op, &[x, positions])?[0])
        };
        (q_pe, k_pe) = (rope(b, "q_rope", q_pe, heads)?, rope(b, "k_rope", k_pe, 1)?);
        inner.extend([q_pe, k_pe]);
    }
    b.format = of_keys.formats[0];
    let shape = if transposed { [heads, nope, rank] } else { [heads, rank, nope] };
    let shape = if rank % b.format.block_elems() == 0 { shape } else { [heads, rank, nope] };
    let transposed = transposed && shape[1] == nope && shape[2] == rank;
    let tensor = b.matrix("k_b", &shape);
    let weight = WeightSlice { tensor, rows: 0..shape[1], experts: Some(0..heads), home: WeightHome::Device };
    let op = Op::HeadMatMul { weight, transposed };
    let absorbed = b.graph.push(LAYER, "q_absorbed", op, &[q_nope])?[0];
    let mut q = b.graph.push(LAYER, "q_latent", Op::Concat { heads }, &[absorbed, q_pe])?[0];
    inner.extend([absorbed, q]);
    if b.one_in(4) {
        b.note("tempered", true);
        let attrs = PositionScaleAttrs { scale: 0.3, length: 3, offset: b.pick(&[0, 1]) };
        let inputs = [q, b.graph.inputs.positions];
        q = b.graph.push(LAYER, "q_tempered", Op::PositionScale(attrs), &inputs)?[0];
        inner.push(q);
    }
    let k = b.graph.push(LAYER, "k_latent", Op::Concat { heads: 1 }, &[c, k_pe])?[0];
    inner.push(k);
    b.graph.num_layers = 1;
    let rows = Lifetime::PerToken { window: None };
    let key = b.graph.add_state(StateRole::Key, LayerIdx(0), 1, rank + pe, rows);
    let inputs = [k, b.graph.inputs.kv_slots];
    let written = b.graph.push(LAYER, "kv_write", Op::KvWrite { key, value: None }, &inputs)?[0];
    let attrs = AttentionAttrs {
        num_attention_heads: heads,
        num_key_value_heads: 1,
        head_dim: rank + pe,
        value_head_dim: rank,
        scale: 1.0 / (d as f32).sqrt(),
        window: None,
        chunk: None,
        soft_cap: None,
        sinks: None,
        value_in_key: true,
        masked: false,
    };
    let inputs = [q, written, written, b.graph.inputs.positions, b.graph.inputs.sequence];
    let attended = b.graph.push(LAYER, "attention", Op::Attention(attrs), &inputs)?;
    outputs(b, &inner, &attended);
    let (mut steps, mut at) = (Vec::new(), 0);
    for tokens in [b.pick(&[1, 2, 7, 33]), 2, 1, 1] {
        steps.push(b.step(at as u32, tokens, &[], 2.0));
        at += tokens;
    }
    Ok((steps, at))
}

/// A post-norm of a row, or of the sum of two normed ones, the residual stream, and a factor now and then.
pub(super) fn norms_residual(b: &mut Builder) -> Result<Steps, BackendError> {
    let width = b.pick(&[1, 33, 64, 100, 256, 768, 2048]);
    let (of_two, scaled) = (!b.one_in(3), !b.one_in(3));
    b.note("width", width);
    b.note("of two", of_two);
    b.note("scaled", scaled);
    let mut inner = Vec::new();
    let mut x = b.boundary(row(width), DType::F32);
    if of_two {
        let other = b.boundary(row(width), DType::F32);
        let (first, second) =
            (norm(b, "norm_1", x, width, 1, 1e-6)?, norm(b, "norm_2", other, width, 1, 1e-5)?);
        x = b.graph.push(LAYER, "sum", Op::Add, &[first, second])?[0];
        inner.extend([first, second, x]);
    }
    let mut y = post_norm(b, x, width, &mut inner)?;
    if scaled {
        inner.push(y);
        let function = PointwiseFn::Scale(0.75);
        y = b.graph.push(LAYER, "scaled", Op::Pointwise { function }, &[y])?[0];
    }
    outputs(b, &inner, &[y]);
    Ok(plain_steps(b))
}
