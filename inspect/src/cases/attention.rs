//! Cases of attention with its KV cache, and of the two ops that show its inside.

use super::{Builder, CaseStep};
use moe_run_graph::ir::{AttentionAttrs, DType, Dim, LayerIdx, Lifetime, Op, Shape, StateRole, ValueId};
use moe_run_runtime::error::BackendError;

type Steps = (Vec<CaseStep>, usize);

fn attrs(b: &mut Builder) -> AttentionAttrs {
    let kv_heads = b.pick(&[1, 2, 4]);
    let num_attention_heads = kv_heads * b.pick(&[1, 2, 4, 8]);
    let head_dim = b.pick(&[32, 64, 128]);
    b.note("H", num_attention_heads);
    b.note("G", kv_heads);
    b.note("d", head_dim);
    AttentionAttrs {
        num_attention_heads,
        num_key_value_heads: kv_heads,
        head_dim,
        value_head_dim: head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window: None,
        soft_cap: None,
        sinks: None,
    }
}

/// q, and k and v written to the cache.
fn cached(b: &mut Builder, attrs: &AttentionAttrs) -> Result<(ValueId, Vec<ValueId>), BackendError> {
    let row = |n: usize| Shape::new(&[Dim::Tokens, Dim::Fixed(n)]);
    let (h, g) = (attrs.num_attention_heads, attrs.num_key_value_heads);
    let q = b.boundary(row(h * attrs.head_dim), DType::F32);
    let k = b.boundary(row(g * attrs.head_dim), DType::F32);
    let v = b.boundary(row(g * attrs.value_head_dim), DType::F32);
    let layer = LayerIdx(0);
    b.graph.num_layers = 1;
    let rows = Lifetime::PerToken { window: None };
    let key = b.graph.add_state(StateRole::Key, layer, g, attrs.head_dim, rows);
    let value = b.graph.add_state(StateRole::Value, layer, g, attrs.value_head_dim, rows);
    let slots = b.graph.inputs.kv_slots;
    let cache = b.graph.push(Some(layer), "kv_write", Op::KvWrite { key, value }, &[k, v, slots])?;
    Ok((q, cache))
}

/// A prompt, then a part that is not a whole tile, then single tokens: cache lengths across tile edges.
fn conversation(b: &mut Builder) -> Steps {
    let prompt = b.pick(&[1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 257]);
    let more = b.pick(&[1, 3, 20]);
    b.note("T", format!("{prompt}+{more}+1+1"));
    let mut steps = Vec::new();
    let mut at = 0;
    for tokens in [prompt, more, 1, 1] {
        steps.push(b.step(at as u32, tokens, &[], 2.0));
        at += tokens;
    }
    (steps, at)
}

pub(super) fn attention(b: &mut Builder) -> Result<Steps, BackendError> {
    let attrs = attrs(b);
    let (q, cache) = cached(b, &attrs)?;
    let (positions, sequence) = (b.graph.inputs.positions, b.graph.inputs.sequence);
    let inputs = [q, cache[0], cache[1], positions, sequence];
    b.graph.outputs = b.graph.push(Some(LayerIdx(0)), "attention", Op::Attention(attrs), &inputs)?;
    Ok(conversation(b))
}

pub(super) fn attention_scores(b: &mut Builder) -> Result<Steps, BackendError> {
    let attrs = attrs(b);
    let (q, cache) = cached(b, &attrs)?;
    let (positions, sequence) = (b.graph.inputs.positions, b.graph.inputs.sequence);
    let inputs = [q, cache[0], positions, sequence];
    b.graph.outputs = b.graph.push(Some(LayerIdx(0)), "attn_scores", Op::AttentionScores(attrs), &inputs)?;
    Ok(conversation(b))
}

pub(super) fn attention_softmax(b: &mut Builder) -> Result<Steps, BackendError> {
    let attrs = attrs(b);
    let shape = Shape::new(&[Dim::Fixed(attrs.num_attention_heads), Dim::Tokens, Dim::Cached]);
    let scores = b.boundary(shape, DType::F32);
    b.graph.num_layers = 1;
    let (positions, sequence) = (b.graph.inputs.positions, b.graph.inputs.sequence);
    let inputs = [scores, positions, sequence];
    b.graph.outputs =
        b.graph.push(Some(LayerIdx(0)), "attn_softmax", Op::AttentionSoftmax(attrs), &inputs)?;
    Ok(conversation(b))
}
