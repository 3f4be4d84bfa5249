//! Norm, q/k/v, Q/K norm, RoPE, KV cache, causal attention with grouped queries, output gate, o_proj, post-norm, residual.

use super::branch::Branch;
use super::{latent_attention, norm, output_gate, rope};
use crate::architectures::lowering::Presence;
use crate::architectures::{LowerError, Lowering, only};
use crate::config::{AttentionConfig, RopeConfig};
use crate::gguf::keys::tensor::ROPE_FREQS;
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{
    ActivationFn, AttentionAttrs, LayerIdx, Lifetime, Op, PointwiseFn, RopeSpec, RopeTableId, Stage,
    StateRole, ValueId,
};

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
    /// RMSNorm of v, head by head and without weight.
    pub v_norm: bool,
    /// In layers without a v_proj, k_proj's product is v too.
    pub k_may_be_v: bool,
    /// An extra logit a head in the softmax's denominator.
    pub sinks: Presence,
    /// What divides RoPE's angles, pair by pair: one tensor for all layers that have it.
    pub rope_divisors: Presence,
    /// That tensor.
    pub rope_divisors_name: &'static str,
    /// Which those are.
    pub rope_divisors_of: RopeDivisors,
    /// q_proj has a gate of what comes out beside each head's queries.
    pub output_gate: bool,
    /// A product of the normed input by itself, whose function multiplies what attention gives.
    pub gate: Option<ActivationFn>,
    /// What that gate gives is a stage of its own behind attention, not attention's.
    pub gate_stage: bool,
    /// The tensor of the norm of o_proj's product.
    pub post_norm: Option<&'static str>,
}

/// What the norm of q and k is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormSpan {
    /// Each head by itself, all with the same weight.
    Head,
    /// All heads at once.
    Row,
}

/// Which layers have their angles divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeDivisors {
    /// All that rotate.
    EveryLayer,
    /// Those of them without a window.
    FullAttention,
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
        v_norm: false,
        k_may_be_v: false,
        sinks: Presence::Never,
        rope_divisors: Presence::Never,
        rope_divisors_name: ROPE_FREQS,
        rope_divisors_of: RopeDivisors::EveryLayer,
        output_gate: false,
        gate: None,
        gate_stage: false,
        post_norm: None,
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
    let normed = normed_input(l, layer, x, spec)?;
    let (attended, width) = branch(l, layer, normed, spec)?;
    let out = output(l, layer, attended, width, spec)?;
    let residual = only(l.graph.push(Some(layer), "attn_residual", Op::Add, &[x, out])?);
    l.graph.tap(Some(layer), Stage::PostAttnResidual, &[residual])?;
    Ok(residual)
}

/// The norm in front.
pub(in crate::architectures) fn normed_input(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    spec: &AttentionSpec,
) -> Result<ValueId, LowerError> {
    let normed = norm::lower(l, Some(layer), "attn_norm", &blk(layer.index(), spec.norm), x, 1)?;
    l.graph.tap(Some(layer), Stage::AttnNorm, &[normed])?;
    Ok(normed)
}

/// What goes into o_proj, of the normed input, and its width.
pub(in crate::architectures) fn branch(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    spec: &AttentionSpec,
) -> Result<(ValueId, usize), LowerError> {
    let config = l.config.layers[layer.index()].attention.clone();
    let (attended, width, beside) = match &config.latent {
        Some(latent) => {
            let (attended, width) = latent_attention::lower(l, layer, normed, &config, latent)?;
            (attended, width, None)
        }
        None => plain(l, layer, normed, &config, spec)?,
    };
    let before = attended;
    let (attended, gate) = gated(l, layer, [normed, attended], width, &config, spec)?;
    if spec.gate_stage {
        l.graph.tap(Some(layer), Stage::Attention, &[before])?;
        l.graph.tap(Some(layer), Stage::AttentionGated, &[attended])?;
    } else {
        l.graph.tap(Some(layer), Stage::Attention, &[attended])?;
    }
    if let Some(gate) = gate {
        l.graph.tap(Some(layer), Stage::AttnGate, &[gate])?;
    }
    match beside {
        Some(gate) => Ok((output_gate::apply(l, layer, gate, attended)?, width)),
        None => Ok((attended, width)),
    }
}

/// Attention whose keys and values are those of heads, its width, and the gate that q_proj had beside the queries.
fn plain(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    config: &AttentionConfig,
    spec: &AttentionSpec,
) -> Result<(ValueId, usize, Option<ValueId>), LowerError> {
    let heads = config.num_attention_heads;
    let [q, kv @ ..] = &project(l, layer, normed, config, spec)?[..] else { return Err(missing(layer)) };
    let (q, gate) = match spec.output_gate {
        true => {
            let [q, gate] = output_gate::split(l, layer, *q, config)?;
            (q, Some(gate))
        }
        false => (*q, None),
    };
    let (q, k) = place(l, layer, q, kv.first().copied(), config, spec)?;
    let q = temper(l, layer, q, config)?;
    let attrs = AttentionAttrs {
        num_attention_heads: heads,
        num_key_value_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        value_head_dim: config.value_head_dim,
        scale: config.scale,
        window: config.sliding_window,
        chunk: config.chunk,
        soft_cap: None,
        sinks: l.opt_vector(&blk(layer.index(), tensor::ATTN_SINKS), heads, spec.sinks)?,
        value_in_key: false,
        masked: false,
    };
    let cache = match (k, kv.last()) {
        (Some(k), Some(v)) => {
            let v = if spec.v_norm { norm_v(l, layer, *v, config)? } else { *v };
            write(l, layer, k, Some(v), &attrs)?
        }
        _ => config.kv_layer.and_then(|other| l.caches.get(&other)).copied().ok_or_else(|| missing(layer))?,
    };
    Ok((attend(l, layer, q, cache, None, attrs)?, heads * config.value_head_dim, gate))
}

/// The error for a layer without keys and values of its own or of another: a file with its k_proj would have them.
fn missing(layer: LayerIdx) -> LowerError {
    LowerError::MissingTensor { name: blk(layer.index(), tensor::ATTN_K), wanted: Vec::new() }
}

/// o_proj and what stands behind it: what is added to the residual stream.
pub(in crate::architectures) fn output(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    attended: ValueId,
    width: usize,
    spec: &AttentionSpec,
) -> Result<ValueId, LowerError> {
    let (at, hidden_size) = (Some(layer), l.config.hidden_size);
    let file = |rest: &str| blk(layer.index(), rest);
    let weight = l.matrix(&file(tensor::ATTN_OUTPUT), hidden_size, width)?;
    let bias = l.opt_vector(&file(tensor::ATTN_OUTPUT_BIAS), hidden_size, spec.output_bias)?;
    let op = |scale| Op::MatMul { weight: weight.clone(), bias, scale };
    let out = Branch::begin(l, at, ["o_proj", "o_proj_unscaled"], op, &[attended])?[0];
    l.graph.tap(at, Stage::AttnOut, &[out.plain])?;
    let Some(post_norm) = spec.post_norm else { return Ok(out.scaled) };
    let normed = norm::lower(l, at, "post_attn_norm", &file(post_norm), out.scaled, 1)?;
    l.graph.tap(at, Stage::PostAttnNorm, &[normed])?;
    Ok(normed)
}

/// q, k and v of the normed input, with biases; q and k where k is v too, q alone where another layer's cache is read.
fn project(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    config: &AttentionConfig,
    spec: &AttentionSpec,
) -> Result<Vec<ValueId>, LowerError> {
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);
    let kv_heads = config.num_key_value_heads;
    let fused = file(tensor::ATTN_QKV);
    let count = match config.kv_layer {
        Some(_) => 1,
        None if spec.k_may_be_v && !l.has(&file(tensor::ATTN_V)) && !l.has(&fused) => 2,
        None => 3,
    };
    if config.kv_layer.is_some() {
        for rest in [tensor::ATTN_K, tensor::ATTN_V, tensor::ATTN_K_NORM] {
            l.leave_out(file(rest), "the layer reads the keys and values of an earlier one");
        }
    }
    let rows = [
        config.num_attention_heads * config.head_dim * if spec.output_gate { 2 } else { 1 },
        kv_heads * config.head_dim,
        kv_heads * config.value_head_dim,
    ];
    let named = |names: [&str; 3]| -> Vec<(String, usize)> {
        names.map(file).into_iter().zip(rows).take(count).collect()
    };
    let weights = l.matrices(
        &fused,
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

    let mut qkv = Vec::with_capacity(products.len());
    for (name, _, op) in &products {
        qkv.push(only(l.graph.push(at, name, op.clone(), &[normed])?));
    }
    if !has_bias {
        l.graph.tap(at, Stage::QkvMatmul, &qkv)?;
        return bounded(l, layer, qkv, config);
    }
    // The products add the bias as they are written: nodes that feed only taps compute them without it.
    let mut plain = Vec::with_capacity(products.len());
    for (_, name, op) in products {
        let op = match op {
            Op::MatMul { weight, scale, .. } => Op::MatMul { weight, bias: None, scale },
            other => other,
        };
        plain.push(only(l.graph.push(at, name, op, &[normed])?));
    }
    l.graph.tap(at, Stage::QkvMatmul, &plain)?;
    l.graph.tap(at, Stage::QkvBias, &qkv)?;
    bounded(l, layer, qkv, config)
}

/// q, k and v within the layer's bound, where it has one.
fn bounded(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    mut qkv: Vec<ValueId>,
    config: &AttentionConfig,
) -> Result<Vec<ValueId>, LowerError> {
    let Some(bound) = config.qkv_bound else { return Ok(qkv) };
    for (value, name) in qkv.iter_mut().zip(["q_clamp", "k_clamp", "v_clamp"]) {
        let op = Op::Pointwise { function: PointwiseFn::Clamp(bound) };
        *value = only(l.graph.push(Some(layer), name, op, &[*value])?);
    }
    Ok(qkv)
}

/// Q/K norm and RoPE, in the architecture's order.
fn place(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    q: ValueId,
    k: Option<ValueId>,
    config: &AttentionConfig,
    spec: &AttentionSpec,
) -> Result<(ValueId, Option<ValueId>), LowerError> {
    if spec.qk_norm_after_rope {
        let (q, k) = rotate(l, layer, q, k, config, spec)?;
        return norm_qk(l, layer, q, k, config, spec);
    }
    let (q, k) = norm_qk(l, layer, q, k, config, spec)?;
    let (q, k) = rotate(l, layer, q, k, config, spec)?;
    if !config.plain_qk_norm {
        return Ok((q, k));
    }
    let norm = |l: &mut Lowering<'_>, name, x, heads| -> Result<ValueId, LowerError> {
        let op = Op::RmsNorm { weight: None, eps: l.config.rms_norm_eps, heads };
        Ok(only(l.graph.push(Some(layer), name, op, &[x])?))
    };
    let q = norm(l, "q_norm", q, config.num_attention_heads)?;
    let k = k.map(|k| norm(l, "k_norm", k, config.num_key_value_heads)).transpose()?;
    l.graph.tap(Some(layer), Stage::QNorm, &[q])?;
    if let Some(k) = k {
        l.graph.tap(Some(layer), Stage::KNorm, &[k])?;
    }
    Ok((q, k))
}

fn norm_qk(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    q: ValueId,
    k: Option<ValueId>,
    config: &AttentionConfig,
    spec: &AttentionSpec,
) -> Result<(ValueId, Option<ValueId>), LowerError> {
    let at = Some(layer);
    let (q_norm, k_norm) = (blk(layer.index(), tensor::ATTN_Q_NORM), blk(layer.index(), tensor::ATTN_K_NORM));
    // One of the two without the other is an error of the file: the missing one is named.
    if spec.qk_norm == Presence::Never || !(l.wants(&q_norm, spec.qk_norm) || l.wants(&k_norm, spec.qk_norm))
    {
        return Ok((q, k));
    }
    let [q_heads, k_heads] = match spec.qk_norm_span {
        NormSpan::Head => [config.num_attention_heads, config.num_key_value_heads],
        NormSpan::Row => [1, 1],
    };
    let q = norm::lower(l, at, "q_norm", &q_norm, q, q_heads)?;
    let k = k.map(|k| norm::lower(l, at, "k_norm", &k_norm, k, k_heads)).transpose()?;
    l.graph.tap(at, Stage::QNorm, &[q])?;
    if let Some(k) = k {
        l.graph.tap(at, Stage::KNorm, &[k])?;
    }
    Ok((q, k))
}

fn norm_v(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    v: ValueId,
    config: &AttentionConfig,
) -> Result<ValueId, LowerError> {
    let op = Op::RmsNorm { weight: None, eps: l.config.rms_norm_eps, heads: config.num_key_value_heads };
    let v = only(l.graph.push(Some(layer), "v_norm", op, &[v])?);
    l.graph.tap(Some(layer), Stage::VNorm, &[v])?;
    Ok(v)
}

/// The table of a layer's rotation; `None` where it rotates nothing.
fn rope_table(
    l: &mut Lowering<'_>,
    config: &AttentionConfig,
    spec: &AttentionSpec,
) -> Result<Option<RopeTableId>, LowerError> {
    let Some(rope) = &config.rope else { return Ok(None) };
    let divides = match spec.rope_divisors_of {
        RopeDivisors::EveryLayer => true,
        RopeDivisors::FullAttention => config.sliding_window.is_none(),
    };
    let name = spec.rope_divisors_name;
    let divisors = match divides && l.wants(name, spec.rope_divisors) {
        true => l.leading_values(name, rope.dims / 2, config.head_dim / 2)?,
        false => Vec::new(),
    };
    let RopeConfig { theta, dims, scaling, pairing: _ } = *rope;
    let table = RopeSpec { theta, dims, scaling, divisors, behind: 0, back: false };
    Ok(Some(l.graph.add_rope_table(table)))
}

fn rotate(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    q: ValueId,
    k: Option<ValueId>,
    config: &AttentionConfig,
    spec: &AttentionSpec,
) -> Result<(ValueId, Option<ValueId>), LowerError> {
    let (Some(table), Some(rope)) = (rope_table(l, config, spec)?, &config.rope) else {
        // Where nothing is rotated, what would be is shown.
        tap_rotated(l, layer, q, k)?;
        return Ok((q, k));
    };
    let q = rope::lower(l, layer, "q_rope", q, config.num_attention_heads, table, rope.pairing)?;
    let turn = |k| rope::lower(&mut *l, layer, "k_rope", k, config.num_key_value_heads, table, rope.pairing);
    let k = k.map(turn).transpose()?;
    tap_rotated(l, layer, q, k)?;
    Ok((q, k))
}

fn tap_rotated(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    q: ValueId,
    k: Option<ValueId>,
) -> Result<(), LowerError> {
    l.graph.tap(Some(layer), Stage::QPostRope, &[q])?;
    if let Some(k) = k {
        l.graph.tap(Some(layer), Stage::KPostRope, &[k])?;
    }
    Ok(())
}

/// Queries times a factor that grows with their position, where the layer has one.
pub(super) fn temper(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    q: ValueId,
    config: &AttentionConfig,
) -> Result<ValueId, LowerError> {
    let Some(temperature) = config.temperature else { return Ok(q) };
    let positions = l.graph.inputs.positions;
    Ok(only(l.graph.push(Some(layer), "q_temperature", Op::PositionScale(temperature), &[q, positions])?))
}

/// What attention gives, times the function of a product of the normed input: of one number a head or an element, as its
/// tensor's shape tells; and that function.
fn gated(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    [normed, attended]: [ValueId; 2],
    width: usize,
    config: &AttentionConfig,
    spec: &AttentionSpec,
) -> Result<(ValueId, Option<ValueId>), LowerError> {
    let Some(activation) = spec.gate else { return Ok((attended, None)) };
    let (at, heads) = (Some(layer), config.num_attention_heads);
    let name = blk(layer.index(), tensor::ATTN_GATE);
    let by_head = l.rows(&name) == Some(heads) && heads != width;
    let weight = l.matrix(&name, if by_head { heads } else { width }, l.config.hidden_size)?;
    let op = Op::MatMul { weight, bias: None, scale: None };
    let gate = only(l.graph.push(at, "attn_gate_proj", op, &[normed])?);
    let act = Op::GatedAct { activation };
    if by_head {
        let gate = l.graph.push(at, "attn_gate", act, &[gate, gate])?[0];
        let out = l.graph.push(at, "attention_gated", Op::MulHeads, &[attended, gate])?;
        return Ok((only(out), Some(gate)));
    }
    let out = l.graph.push(at, "attention_gated", act, &[gate, attended])?;
    Ok((out[1], Some(out[0])))
}

/// Keys and values into states of the layer; values that are parts of keys have none of their own.
pub(super) fn write(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    k: ValueId,
    v: Option<ValueId>,
    attrs: &AttentionAttrs,
) -> Result<[ValueId; 2], LowerError> {
    let kv_heads = attrs.num_key_value_heads;
    let rows = Lifetime::PerToken { window: attrs.reach() };
    let key = l.graph.add_state(StateRole::Key, layer, kv_heads, attrs.head_dim, rows);
    let value = v.map(|_| l.graph.add_state(StateRole::Value, layer, kv_heads, attrs.value_head_dim, rows));
    let inputs: Vec<ValueId> = [Some(k), v, Some(l.graph.inputs.kv_slots)].into_iter().flatten().collect();
    let written = l.graph.push(Some(layer), "kv_write", Op::KvWrite { key, value }, &inputs)?;
    let cache = [written[0], written.last().copied().unwrap_or(written[0])];
    l.caches.insert(layer.index(), cache);
    Ok(cache)
}

/// softmax · v over a cache; a mask says which of its positions are seen.
pub(super) fn attend(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    q: ValueId,
    cache: [ValueId; 2],
    mask: Option<ValueId>,
    attrs: AttentionAttrs,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let (positions, sequence) = (l.graph.inputs.positions, l.graph.inputs.sequence);
    let attrs = AttentionAttrs { masked: mask.is_some(), ..attrs };
    let with_mask = |inputs: &[ValueId]| -> Vec<ValueId> { inputs.iter().copied().chain(mask).collect() };
    let inputs = with_mask(&[q, cache[0], cache[1], positions, sequence]);
    let attention = l.graph.push(at, "attention", Op::Attention(attrs.clone()), &inputs)?;
    // Flash attention never holds the scores: two nodes that feed only taps recompute them.
    let scores = l.graph.push(
        at,
        "attn_scores",
        Op::AttentionScores(attrs.clone()),
        &[q, cache[0], positions, sequence],
    )?;
    l.graph.tap(at, Stage::AttnScores, &scores)?;
    let inputs = with_mask(&[scores[0], positions, sequence]);
    let softmax = l.graph.push(at, "attn_softmax", Op::AttentionSoftmax(attrs), &inputs)?;
    l.graph.tap(at, Stage::AttnSoftmax, &softmax)?;
    Ok(only(attention))
}
