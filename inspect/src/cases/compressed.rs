//! Cases of hyper-connections and of compressed attention.

use super::attention::{Steps, conversation};
use super::small::row;
use super::{Builder, CaseStep};
use moe_run_graph::ir::{
    AttentionAttrs, CompressAttrs, CompressedAttentionAttrs, DType, Dim, HyperGatesAttrs, LayerIdx, Lifetime,
    Op, Shape, StateRole,
};
use moe_run_runtime::error::BackendError;

pub(super) fn hyper_gates(b: &mut Builder) -> Result<Steps, BackendError> {
    let streams = b.pick(&[1, 2, 4, 4, 8, 9]);
    let iterations = b.pick(&[None, Some(1), Some(2), Some(20)]);
    let width = if iterations.is_some() { (2 + streams) * streams } else { streams };
    let attrs = HyperGatesAttrs {
        streams,
        iterations,
        eps: b.pick(&[1e-6, 1e-3]),
        scale: b.vector("scale", &[if iterations.is_some() { 3 } else { 1 }], 1.0),
        base: b.vector("base", &[width], 0.0),
    };
    let w = b.boundary(row(width), DType::F32);
    b.graph.outputs = b.graph.push(None, "hc_gates", Op::HyperGates(attrs), &[w])?;
    let (t, bound) = (b.tokens(), b.pick(&[1.0, 8.0]));
    b.note("T", t);
    b.note("n", streams);
    b.note("iterations", format!("{iterations:?}"));
    Ok((vec![b.step(0, t, &[], bound)], t))
}

pub(super) fn hyper_connect(b: &mut Builder) -> Result<Steps, BackendError> {
    let (streams, width) = (b.pick(&[1, 2, 4, 8]), b.pick(&[1, 33, 64, 256, 2048]));
    let inputs =
        [streams * width, width, streams, streams * streams].map(|width| b.boundary(row(width), DType::F32));
    b.graph.outputs = b.graph.push(None, "hc_post", Op::HyperConnect { streams }, &inputs)?;
    let t = b.tokens();
    b.note("T", t);
    b.note("n", streams);
    b.note("width", width);
    Ok((vec![b.step(0, t, &[], 1.0)], t))
}

/// A prompt in parts whose ends are no window's: what positions brought crosses steps.
pub(super) fn compress(b: &mut Builder) -> Result<Steps, BackendError> {
    let (overlap, ratio) = (b.one_in(2), b.pick(&[1, 2, 3, 4, 4, 16, 128]));
    let width = b.pick(&[1, 33, 64, 128, 512]);
    let wide = if overlap { 2 * width } else { width };
    let layer = LayerIdx(0);
    b.graph.num_layers = 1;
    let bias = b.vector("bias", &[ratio, wide], 0.0);
    let slots = if overlap { 3 * ratio } else { ratio };
    let state = b.graph.add_state(StateRole::Window, layer, width, 2 * slots, Lifetime::PerSequence);
    let inputs = b.graph.inputs;
    let operands = [
        b.boundary(row(wide), DType::F32),
        b.boundary(row(wide), DType::F32),
        inputs.positions,
        inputs.sequence,
    ];
    let op = Op::Compress(CompressAttrs { ratio, overlap, bias, state });
    b.graph.outputs = b.graph.push(Some(layer), "compress", op, &operands)?;
    b.note("ratio", ratio);
    b.note("overlap", overlap);
    b.note("width", width);
    let bound = b.pick(&[1.0, 20.0]);
    let (mut steps, mut at): (Vec<CaseStep>, usize) = (Vec::new(), 0);
    for tokens in [b.tokens(), ratio + 1, 3, 1, 1, 2 * ratio] {
        steps.push(b.step(at as u32, tokens, &[], bound));
        at += tokens;
    }
    Ok((steps, at))
}

pub(super) fn compressed_attention(b: &mut Builder) -> Result<Steps, BackendError> {
    let heads = b.pick(&[1, 2, 5, 16, 17, 24]);
    let head_dim = b.pick(&[32, 64, 64, 128, 36, 512]);
    let attrs = CompressedAttentionAttrs {
        num_attention_heads: heads,
        head_dim,
        scale: b.pick(&[0.125, 0.3]),
        window: b.pick(&[1, 7, 16, 64, 1000]),
        ratio: b.pick(&[1, 3, 4, 4, 16, 128]),
        sinks: b.sometimes("sinks", &[heads]),
        masked: b.one_in(2),
    };
    let layer = LayerIdx(0);
    b.graph.num_layers = 1;
    let [q, k, e] = [heads * head_dim, head_dim, head_dim].map(|width| b.boundary(row(width), DType::F32));
    let mut states = Vec::new();
    for (x, role, name) in [(k, StateRole::Key, "kv_write"), (e, StateRole::Entry, "entry_write")] {
        let key = b.graph.add_state(role, layer, 1, head_dim, Lifetime::PerToken { window: None });
        let inputs = [x, b.graph.inputs.kv_slots];
        states.extend(b.graph.push(Some(layer), name, Op::KvWrite { key, value: None }, &inputs)?);
    }
    let mut inputs = vec![q, states[0], states[1], b.graph.inputs.positions, b.graph.inputs.sequence];
    if attrs.masked {
        inputs.push(b.mask(Shape::new(&[Dim::Fixed(1), Dim::Tokens, Dim::Cached])));
    }
    b.graph.outputs =
        b.graph.push(Some(layer), "attention", Op::CompressedAttention(attrs.clone()), &inputs)?;
    b.note("H", heads);
    b.note("d", head_dim);
    b.note("window", attrs.window);
    b.note("ratio", attrs.ratio);
    b.note("sinks", attrs.sinks.is_some());
    b.note("masked", attrs.masked);
    Ok(conversation(b, &as_attention(&attrs)))
}

/// Attention of these heads: what its cases' steps are sized by.
fn as_attention(attrs: &CompressedAttentionAttrs) -> AttentionAttrs {
    AttentionAttrs {
        num_attention_heads: attrs.num_attention_heads,
        num_key_value_heads: 1,
        head_dim: attrs.head_dim,
        value_head_dim: attrs.head_dim,
        scale: attrs.scale,
        window: Some(attrs.window),
        chunk: None,
        soft_cap: None,
        sinks: attrs.sinks,
        value_in_key: true,
        masked: attrs.masked,
    }
}
