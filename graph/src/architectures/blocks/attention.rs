//! Norm, q/k/v, per-head Q/K norm, RoPE, KV cache, causal attention with grouped queries, o_proj, residual.

use super::{norm, rope};
use crate::architectures::{LowerError, Lowering, only};
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{AttentionAttrs, LayerIdx, Op, Stage, StateRole, ValueId};

/// Appends a layer's attention to the residual stream `x` [T, D].
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower(l: &mut Lowering<'_>, layer: LayerIdx, x: ValueId) -> Result<ValueId, LowerError> {
    let config = l.config.layers[layer.index()].attention.clone();
    let hidden_size = l.config.hidden_size;
    let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);

    let normed = norm::lower(l, at, "attn_norm", &file(tensor::ATTN_NORM), x, 1)?;
    l.graph.tap(at, Stage::AttnNorm, &[normed])?;

    let (q_width, k_width, v_width) =
        (heads * config.head_dim, kv_heads * config.head_dim, kv_heads * config.value_head_dim);
    l.refuse(&file(tensor::ATTN_QKV_BIAS), "a bias of q, k and v in one tensor")?;
    let parts = [(tensor::ATTN_Q, q_width), (tensor::ATTN_K, k_width), (tensor::ATTN_V, v_width)];
    let weights = l.matrices(
        &file(tensor::ATTN_QKV),
        &parts.map(|(rest, rows)| (file(rest), rows)),
        None,
        hidden_size,
    )?;
    let mut qkv = [normed; 3];
    for ((out, name), weight) in qkv.iter_mut().zip(["q_proj", "k_proj", "v_proj"]).zip(weights) {
        *out = only(l.graph.push(at, name, Op::MatMul { weight, bias: None, scale: None }, &[normed])?);
    }
    l.graph.tap(at, Stage::QkvMatmul, &qkv)?;
    let [mut q, mut k, v] = qkv;

    if config.qk_norm {
        q = norm::lower(l, at, "q_norm", &file(tensor::ATTN_Q_NORM), q, heads)?;
        k = norm::lower(l, at, "k_norm", &file(tensor::ATTN_K_NORM), k, kv_heads)?;
        l.graph.tap(at, Stage::QNorm, &[q])?;
        l.graph.tap(at, Stage::KNorm, &[k])?;
    }
    let q = rope::lower(l, layer, "q_rope", q, heads)?;
    let k = rope::lower(l, layer, "k_rope", k, kv_heads)?;
    l.graph.tap(at, Stage::QPostRope, &[q])?;
    l.graph.tap(at, Stage::KPostRope, &[k])?;

    let key = l.graph.add_state(StateRole::Key, layer, kv_heads, config.head_dim, None);
    let value = l.graph.add_state(StateRole::Value, layer, kv_heads, config.value_head_dim, None);
    let inputs = l.graph.inputs;
    let cache = l.graph.push(at, "kv_write", Op::KvWrite { key, value }, &[k, v, inputs.kv_slots])?;
    let attrs = AttentionAttrs {
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim: config.head_dim,
        value_head_dim: config.value_head_dim,
        scale: (1.0 / (config.head_dim as f64).sqrt()) as f32,
        window: None,
        soft_cap: None,
        sinks: None,
    };
    let (positions, sequence) = (inputs.positions, inputs.sequence);
    let attention = l.graph.push(
        at,
        "attention",
        Op::Attention(attrs.clone()),
        &[q, cache[0], cache[1], positions, sequence],
    )?;
    // Flash attention never holds the scores: two nodes that feed only taps recompute them.
    let scores = l.graph.push(
        at,
        "attn_scores",
        Op::AttentionScores(attrs.clone()),
        &[q, cache[0], positions, sequence],
    )?;
    l.graph.tap(at, Stage::AttnScores, &scores)?;
    let softmax =
        l.graph.push(at, "attn_softmax", Op::AttentionSoftmax(attrs), &[scores[0], positions, sequence])?;
    l.graph.tap(at, Stage::AttnSoftmax, &softmax)?;
    l.graph.tap(at, Stage::Attention, &attention)?;

    let weight = l.matrix(&file(tensor::ATTN_OUTPUT), hidden_size, heads * config.value_head_dim)?;
    let out = l.graph.push(at, "o_proj", Op::MatMul { weight, bias: None, scale: None }, &attention)?;
    l.graph.tap(at, Stage::AttnOut, &out)?;
    let residual = only(l.graph.push(at, "attn_residual", Op::Add, &[x, out[0]])?);
    l.graph.tap(at, Stage::PostAttnResidual, &[residual])?;
    Ok(residual)
}
