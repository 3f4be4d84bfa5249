//! Cases of attention with its KV cache, and of the ops that show its inside.

use super::{Builder, CaseStep};
use moe_run_graph::ir::{
    AttentionAttrs, DType, Dim, IndexScoresAttrs, LayerIdx, Lifetime, Op, Shape, Stage, StateRole, ValueId,
};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::TensorData;

pub(super) type Steps = (Vec<CaseStep>, usize);

/// Multiplications in a case's scores, about: the reference makes them one by one.
const MOST_WORK: usize = 40_000_000;

/// Any heads, and anything that bends their scores.
pub(super) fn attrs(b: &mut Builder) -> AttentionAttrs {
    let num_key_value_heads = b.pick(&[1, 1, 2, 3, 4]);
    let num_attention_heads = num_key_value_heads * b.pick(&[1, 2, 3, 4, 7, 8, 9, 16]);
    let head_dim = b.pick(&[64, 64, 64, 128, 128, 32, 96, 192, 256, 80, 48, 36, 40, 33]);
    let value_in_key = b.one_in(6);
    let value_head_dim = if value_in_key {
        head_dim * 8 / 9 / 4 * 4
    } else if b.one_in(3) {
        b.pick(&[32, 64, 128, 192, 256, 512, 40, 6])
    } else {
        head_dim
    };
    let scale = if b.one_in(4) { 0.05 } else { 1.0 / (head_dim as f32).sqrt() };
    let window = if b.one_in(3) { Some(b.pick(&[1, 2, 5, 16, 31, 64, 100, 1000])) } else { None };
    let soft_cap = if b.one_in(4) { Some(b.pick(&[0.5, 5.0, 50.0])) } else { None };
    let sinks = b.one_in(4).then(|| b.vector("sinks", &[num_attention_heads], 0.5));
    // One of the windows stands for chunks, which CUDA lacks.
    let (window, chunk) = if window == Some(1000) { (None, Some(64)) } else { (window, None) };
    b.note("H", num_attention_heads);
    b.note("G", num_key_value_heads);
    b.note("d", head_dim);
    b.note("dv", value_head_dim);
    b.note("in_key", value_in_key);
    b.note("window", format!("{window:?}"));
    b.note("chunk", format!("{chunk:?}"));
    b.note("cap", format!("{soft_cap:?}"));
    b.note("sinks", sinks.is_some());
    AttentionAttrs {
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        value_head_dim,
        scale,
        window,
        chunk,
        soft_cap,
        sinks,
        value_in_key,
        masked: b.one_in(6),
    }
}

/// What holds k and v for these heads.
pub(super) fn cache(
    b: &mut Builder,
    attrs: &AttentionAttrs,
    k: ValueId,
    v: ValueId,
) -> Result<Vec<ValueId>, BackendError> {
    let layer = LayerIdx(0);
    b.graph.num_layers = 1;
    let heads = attrs.num_key_value_heads;
    let rows = Lifetime::PerToken { window: None };
    let key = b.graph.add_state(StateRole::Key, layer, heads, attrs.head_dim, rows);
    let slots = b.graph.inputs.kv_slots;
    if attrs.value_in_key {
        let written = b.graph.push(Some(layer), "kv_write", Op::KvWrite { key, value: None }, &[k, slots])?;
        return Ok([written[0]; 2].to_vec());
    }
    let value = Some(b.graph.add_state(StateRole::Value, layer, heads, attrs.value_head_dim, rows));
    Ok(b.graph.push(Some(layer), "kv_write", Op::KvWrite { key, value }, &[k, v, slots])?)
}

/// q, k and v from outside.
pub(super) fn operands(b: &mut Builder, attrs: &AttentionAttrs) -> [ValueId; 3] {
    let (h, g) = (attrs.num_attention_heads, attrs.num_key_value_heads);
    [h * attrs.head_dim, g * attrs.head_dim, g * attrs.value_head_dim]
        .map(|width| b.boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(width)]), DType::F32))
}

/// q, and k and v written to the cache.
fn cached(b: &mut Builder, attrs: &AttentionAttrs) -> Result<(ValueId, Vec<ValueId>), BackendError> {
    let [q, k, v] = operands(b, attrs);
    Ok((q, cache(b, attrs, k, v)?))
}

/// A prompt, then a part that is not a whole tile, then single tokens: cache lengths across tile edges.
pub(super) fn conversation(b: &mut Builder, attrs: &AttentionAttrs) -> Steps {
    let each = attrs.num_attention_heads * (attrs.head_dim + attrs.value_head_dim);
    let prompts = [1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 257, 520];
    let fitting = prompts.iter().filter(|n| **n * **n * each / 2 <= MOST_WORK).count();
    let prompt = b.pick(&prompts[..fitting.max(1)]);
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

/// What says which positions are seen, where something does: random numbers, for each position 0 or not.
fn mask(b: &mut Builder, attrs: &AttentionAttrs) -> Option<ValueId> {
    attrs.masked.then(|| b.mask(Shape::new(&[Dim::Fixed(1), Dim::Tokens, Dim::Cached])))
}

/// Attention over what is cached.
pub(super) fn attend(
    b: &mut Builder,
    attrs: &AttentionAttrs,
    q: ValueId,
    cache: &[ValueId],
) -> Result<Vec<ValueId>, BackendError> {
    let mut inputs = vec![q, cache[0], cache[1], b.graph.inputs.positions, b.graph.inputs.sequence];
    inputs.extend(mask(b, attrs));
    Ok(b.graph.push(Some(LayerIdx(0)), "attention", Op::Attention(attrs.clone()), &inputs)?)
}

fn scores(
    b: &mut Builder,
    attrs: &AttentionAttrs,
    q: ValueId,
    cache: &[ValueId],
) -> Result<Vec<ValueId>, BackendError> {
    let inputs = [q, cache[0], b.graph.inputs.positions, b.graph.inputs.sequence];
    Ok(b.graph.push(Some(LayerIdx(0)), "attn_scores", Op::AttentionScores(attrs.clone()), &inputs)?)
}

pub(super) fn attention(b: &mut Builder) -> Result<Steps, BackendError> {
    let attrs = attrs(b);
    let (q, cache) = cached(b, &attrs)?;
    b.graph.outputs = attend(b, &attrs, q, &cache)?;
    Ok(conversation(b, &attrs))
}

/// What was written, read back: the keys by their scores, the values by attention that sees the token's own alone.
pub(super) fn kv_write(b: &mut Builder) -> Result<Steps, BackendError> {
    let attrs = attrs(b);
    let attrs =
        AttentionAttrs { window: Some(1), chunk: None, soft_cap: None, sinks: None, masked: false, ..attrs };
    let (q, cache) = cached(b, &attrs)?;
    let values = attend(b, &attrs, q, &cache)?;
    let keys = scores(b, &AttentionAttrs { window: None, ..attrs.clone() }, q, &cache)?;
    b.graph.outputs = [values, keys].concat();
    Ok(conversation(b, &attrs))
}

pub(super) fn attention_scores(b: &mut Builder) -> Result<Steps, BackendError> {
    let attrs = attrs(b);
    let (q, cache) = cached(b, &attrs)?;
    b.graph.outputs = scores(b, &attrs, q, &cache)?;
    let shown = b.graph.outputs.clone();
    b.graph.tap(Some(LayerIdx(0)), Stage::AttnScores, &shown)?;
    Ok(conversation(b, &attrs))
}

pub(super) fn attention_softmax(b: &mut Builder) -> Result<Steps, BackendError> {
    let attrs = attrs(b);
    let shape = Shape::new(&[Dim::Fixed(attrs.num_attention_heads), Dim::Tokens, Dim::Cached]);
    let scores = b.boundary(shape, DType::F32);
    b.graph.num_layers = 1;
    let mut inputs = vec![scores, b.graph.inputs.positions, b.graph.inputs.sequence];
    inputs.extend(mask(b, &attrs));
    let op = Op::AttentionSoftmax(attrs.clone());
    b.graph.outputs = b.graph.push(Some(LayerIdx(0)), "attn_softmax", op, &inputs)?;
    Ok(conversation(b, &attrs))
}

pub(super) fn index_scores(b: &mut Builder) -> Result<Steps, BackendError> {
    let attrs =
        IndexScoresAttrs { num_heads: b.pick(&[1, 4, 8, 32, 64]), head_dim: b.pick(&[64, 128, 36, 33]) };
    let key = index_operands(b, &attrs)?;
    b.graph.outputs = vec![key];
    Ok(indexed(b, &attrs))
}

pub(super) fn index_select(b: &mut Builder) -> Result<Steps, BackendError> {
    let (top_k, every) = (b.pick(&[1, 2, 8, 100]), b.pick(&[1, 1, 4, 3]));
    let scores = b.boundary(Shape::new(&[Dim::Fixed(1), Dim::Tokens, Dim::Cached]), DType::F32);
    b.graph.num_layers = 1;
    let inputs = [scores, b.graph.inputs.positions, b.graph.inputs.sequence];
    b.graph.outputs =
        b.graph.push(Some(LayerIdx(0)), "index_select", Op::IndexSelect { top_k, every }, &inputs)?;
    b.note("K", top_k);
    b.note("every", every);
    let (mut steps, at) = indexed(b, &IndexScoresAttrs { num_heads: 1, head_dim: 1 });
    // Some steps have scores of which many are equal.
    for step in steps.iter_mut().skip(1) {
        for (_, tensor) in &mut step.boundary {
            if let TensorData::F32(scores) = &mut tensor.data {
                scores.iter_mut().for_each(|score| *score = score.round());
            }
        }
    }
    Ok((steps, at))
}

/// An indexer's scores of q, w and keys from outside.
fn index_operands(b: &mut Builder, attrs: &IndexScoresAttrs) -> Result<ValueId, BackendError> {
    let IndexScoresAttrs { num_heads, head_dim } = *attrs;
    let [q, w, k] = [num_heads * head_dim, num_heads, head_dim]
        .map(|width| b.boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(width)]), DType::F32));
    let layer = LayerIdx(0);
    b.graph.num_layers = 1;
    let rows = Lifetime::PerToken { window: None };
    let key = b.graph.add_state(StateRole::IndexKey, layer, 1, head_dim, rows);
    let inputs = b.graph.inputs;
    let op = Op::KvWrite { key, value: None };
    let keys = b.graph.push(Some(layer), "index_kv_write", op, &[k, inputs.kv_slots])?[0];
    let operands = [q, w, keys, inputs.positions, inputs.sequence];
    Ok(b.graph.push(Some(layer), "index_scores", Op::IndexScores(*attrs), &operands)?[0])
}

/// As [`conversation`], of an indexer's heads.
fn indexed(b: &mut Builder, attrs: &IndexScoresAttrs) -> Steps {
    let of = AttentionAttrs {
        num_attention_heads: attrs.num_heads,
        num_key_value_heads: 1,
        head_dim: attrs.head_dim,
        value_head_dim: 0,
        scale: 1.0,
        window: None,
        chunk: None,
        soft_cap: None,
        sinks: None,
        value_in_key: false,
        masked: false,
    };
    b.note("H", attrs.num_heads);
    b.note("d", attrs.head_dim);
    conversation(b, &of)
}
