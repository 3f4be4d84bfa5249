//! Norm, q/k/v, Q/K norm, RoPE, KV cache, causal attention with grouped queries, o_proj, residual.

use super::branch::Branch;
use super::{norm, output_gate, rope};
use crate::architectures::lowering::Presence;
use crate::architectures::{LowerError, Lowering, only};
use crate::config::AttentionConfig;
use crate::gguf::keys::tensor::ROPE_FREQS;
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{AttentionAttrs, LayerIdx, Lifetime, Op, RopeSpec, Stage, StateRole, ValueId};

/// What an architecture's attention is made of.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSpec {
    /// The tensor of the norm in front.
    pub norm: &'static str,
    /// Biases of q, k and v.
    pub qkv_bias: Presence,
    /// Bias of o_proj.
    pub output_bias: Presence,
    /// RMSNorm of q and k.
    pub qk_norm: Presence,
    /// What it is over.
    pub qk_norm_span: NormSpan,
    /// It comes behind RoPE.
    pub qk_norm_after_rope: bool,
    /// An extra logit a head in the softmax's denominator.
    pub sinks: Presence,
    /// What divides RoPE's angles, pair by pair: one tensor for all layers.
    pub rope_divisors: Presence,
    /// q_proj has a gate of what comes out beside each head's queries.
    pub output_gate: bool,
}

/// What the norm of q and k is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormSpan {
    /// Each head by itself, all with the same weight.
    Head,
    /// All heads at once.
    Row,
}

impl AttentionSpec {
    /// Without biases, without Q/K norm.
    pub const PLAIN: AttentionSpec = AttentionSpec {
        norm: tensor::ATTN_NORM,
        qkv_bias: Presence::Never,
        output_bias: Presence::Never,
        qk_norm: Presence::Never,
        qk_norm_span: NormSpan::Head,
        qk_norm_after_rope: false,
        sinks: Presence::Never,
        rope_divisors: Presence::Never,
        output_gate: false,
    };
}

/// Appends a layer's attention to the residual stream `x` [T, D].
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    spec: &AttentionSpec,
) -> Result<ValueId, LowerError> {
    let config = l.config.layers[layer.index()].attention.clone();
    let hidden_size = l.config.hidden_size;
    let (heads, value_width) =
        (config.num_attention_heads, config.num_attention_heads * config.value_head_dim);
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);

    let normed = norm::lower(l, at, "attn_norm", &file(spec.norm), x, 1)?;
    l.graph.tap(at, Stage::AttnNorm, &[normed])?;
    let [q, k, v] = project(l, layer, normed, &config, spec)?;
    let (q, gate) = match spec.output_gate {
        true => {
            let [q, gate] = output_gate::split(l, layer, q, &config)?;
            (q, Some(gate))
        }
        false => (q, None),
    };
    let [q, k] = place(l, layer, [q, k], &config, spec)?;
    let sinks = l.opt_vector(&file(tensor::ATTN_SINKS), heads, spec.sinks)?;
    let attrs = AttentionAttrs {
        num_attention_heads: heads,
        num_key_value_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        value_head_dim: config.value_head_dim,
        scale: config.scale,
        window: config.sliding_window,
        soft_cap: None,
        sinks,
        value_in_key: false,
    };
    let mut attended = attend(l, layer, [q, k, v], attrs)?;
    if let Some(gate) = gate {
        attended = output_gate::apply(l, layer, gate, attended)?;
    }

    let weight = l.matrix(&file(tensor::ATTN_OUTPUT), hidden_size, value_width)?;
    let bias = l.opt_vector(&file(tensor::ATTN_OUTPUT_BIAS), hidden_size, spec.output_bias)?;
    let op = |scale| Op::MatMul { weight: weight.clone(), bias, scale };
    let out = Branch::begin(l, at, ["o_proj", "o_proj_unscaled"], op, &[attended])?[0];
    l.graph.tap(at, Stage::AttnOut, &[out.plain])?;
    let residual = only(l.graph.push(at, "attn_residual", Op::Add, &[x, out.scaled])?);
    l.graph.tap(at, Stage::PostAttnResidual, &[residual])?;
    Ok(residual)
}

/// q, k and v of the normed input, with biases.
fn project(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    config: &AttentionConfig,
    spec: &AttentionSpec,
) -> Result<[ValueId; 3], LowerError> {
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);
    let kv_heads = config.num_key_value_heads;
    let rows = [
        config.num_attention_heads * config.head_dim * if spec.output_gate { 2 } else { 1 },
        kv_heads * config.head_dim,
        kv_heads * config.value_head_dim,
    ];
    let named =
        |names: [&str; 3]| -> Vec<(String, usize)> { names.map(file).into_iter().zip(rows).collect() };
    let weights = l.matrices(
        &file(tensor::ATTN_QKV),
        &named([tensor::ATTN_Q, tensor::ATTN_K, tensor::ATTN_V]),
        None,
        l.config.hidden_size,
    )?;
    let biases = l.opt_vectors(
        &file(tensor::ATTN_QKV_BIAS),
        &named([tensor::ATTN_Q_BIAS, tensor::ATTN_K_BIAS, tensor::ATTN_V_BIAS]),
        spec.qkv_bias,
    )?;
    let has_bias = biases.iter().any(Option::is_some);
    let products: Vec<(&'static str, &'static str, Op)> = [
        ("q_proj", "q_proj_without_bias", None),
        ("k_proj", "k_proj_without_bias", None),
        ("v_proj", "v_proj_without_bias", config.value_scale),
    ]
    .into_iter()
    .zip(weights.into_iter().zip(biases))
    .map(|((name, plain, scale), (weight, bias))| (name, plain, Op::MatMul { weight, bias, scale }))
    .collect();

    let mut qkv = [normed; 3];
    for (out, (name, _, op)) in qkv.iter_mut().zip(&products) {
        *out = only(l.graph.push(at, name, op.clone(), &[normed])?);
    }
    if !has_bias {
        l.graph.tap(at, Stage::QkvMatmul, &qkv)?;
        return Ok(qkv);
    }
    // The products add the bias as they are written: nodes that feed only taps compute them without it.
    let mut plain = qkv;
    for (out, (_, name, op)) in plain.iter_mut().zip(products) {
        let op = match op {
            Op::MatMul { weight, scale, .. } => Op::MatMul { weight, bias: None, scale },
            other => other,
        };
        *out = only(l.graph.push(at, name, op, &[normed])?);
    }
    l.graph.tap(at, Stage::QkvMatmul, &plain)?;
    l.graph.tap(at, Stage::QkvBias, &qkv)?;
    Ok(qkv)
}

/// Q/K norm and RoPE, in the architecture's order.
fn place(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    qk: [ValueId; 2],
    config: &AttentionConfig,
    spec: &AttentionSpec,
) -> Result<[ValueId; 2], LowerError> {
    let heads = [config.num_attention_heads, config.num_key_value_heads];
    if spec.qk_norm_after_rope {
        let qk = rotate(l, layer, qk, heads, spec)?;
        return norm_qk(l, layer, qk, heads, spec);
    }
    let qk = norm_qk(l, layer, qk, heads, spec)?;
    rotate(l, layer, qk, heads, spec)
}

fn norm_qk(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    [q, k]: [ValueId; 2],
    heads: [usize; 2],
    spec: &AttentionSpec,
) -> Result<[ValueId; 2], LowerError> {
    let at = Some(layer);
    let (q_norm, k_norm) = (blk(layer.index(), tensor::ATTN_Q_NORM), blk(layer.index(), tensor::ATTN_K_NORM));
    // One of the two without the other is an error of the file: the missing one is named.
    if spec.qk_norm == Presence::Never || !(l.wants(&q_norm, spec.qk_norm) || l.wants(&k_norm, spec.qk_norm))
    {
        return Ok([q, k]);
    }
    let [q_heads, k_heads] = match spec.qk_norm_span {
        NormSpan::Head => heads,
        NormSpan::Row => [1, 1],
    };
    let q = norm::lower(l, at, "q_norm", &q_norm, q, q_heads)?;
    let k = norm::lower(l, at, "k_norm", &k_norm, k, k_heads)?;
    l.graph.tap(at, Stage::QNorm, &[q])?;
    l.graph.tap(at, Stage::KNorm, &[k])?;
    Ok([q, k])
}

fn rotate(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    [q, k]: [ValueId; 2],
    heads: [usize; 2],
    spec: &AttentionSpec,
) -> Result<[ValueId; 2], LowerError> {
    let Some(config) = l.config.layers[layer.index()].attention.rope.clone() else { return Ok([q, k]) };
    let divisors = match l.wants(ROPE_FREQS, spec.rope_divisors) {
        true => l.values(ROPE_FREQS, config.dims / 2)?,
        false => Vec::new(),
    };
    let table = RopeSpec { theta: config.theta, dims: config.dims, scaling: config.scaling, divisors };
    let table = l.graph.add_rope_table(table);
    let q = rope::lower(l, layer, "q_rope", q, heads[0], table, config.pairing)?;
    let k = rope::lower(l, layer, "k_rope", k, heads[1], table, config.pairing)?;
    l.graph.tap(Some(layer), Stage::QPostRope, &[q])?;
    l.graph.tap(Some(layer), Stage::KPostRope, &[k])?;
    Ok([q, k])
}

/// The cache, and softmax · v.
fn attend(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    [q, k, v]: [ValueId; 3],
    attrs: AttentionAttrs,
) -> Result<ValueId, LowerError> {
    let (at, kv_heads) = (Some(layer), attrs.num_key_value_heads);
    let rows = Lifetime::PerToken { window: attrs.window };
    let key = l.graph.add_state(StateRole::Key, layer, kv_heads, attrs.head_dim, rows);
    let value = l.graph.add_state(StateRole::Value, layer, kv_heads, attrs.value_head_dim, rows);
    let inputs = l.graph.inputs;
    let write = Op::KvWrite { key, value: Some(value) };
    let cache = l.graph.push(at, "kv_write", write, &[k, v, inputs.kv_slots])?;
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
    Ok(only(attention))
}
