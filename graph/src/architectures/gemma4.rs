//! Gemma 4: norms in front of and behind each part; layers with a window whose heads, bases and KV heads are their own, and
//! layers without, whose k is v too in some models; values under a norm; experts beside an MLP, behind a router with a norm
//! of its own; or dense layers that have a further input each, of which the last read the keys and values of earlier ones.
//!
//! Definition: Hugging Face transformers, `models/gemma4/modeling_gemma4.py`.

use super::blocks::attention::{self, AttentionSpec, RopeDivisors};
use super::blocks::ffn::{FfnSpec, RouterInput};
use super::blocks::{decoder, embedding, lm_head, norm, parallel_ffn};
use super::lowering::Presence;
use super::{Architecture, LowerError, Lowering, only};
use crate::config::{
    AttentionConfig, AttentionDefaults, ConfigError, FfnConfig, ModelConfig, MoeConfig, MoeDefaults, Reader,
};
use crate::gguf::keys::{arch, blk, layer as tensor, tensor as of_model};
use crate::ir::{ActivationFn, GateKind, LayerIdx, Op, PointwiseFn, Stage, ValueId};

pub(super) const ROW: Architecture = Architecture { name: "gemma4", configure, lower };

const ATTENTION: AttentionSpec = AttentionSpec {
    qk_norm: Presence::Required,
    v_norm: true,
    k_may_be_v: true,
    rope_divisors: Presence::Optional,
    rope_divisors_of: RopeDivisors::FullAttention,
    post_norm: Some(tensor::POST_ATTENTION_NORM),
    ..AttentionSpec::PLAIN
};

const FFN: FfnSpec = FfnSpec {
    router_input: RouterInput::OwnNorm,
    expert_scale: Presence::Required,
    expert_activation: ActivationFn::GeluTanh,
    activation: ActivationFn::GeluTanh,
    post_norm: Some(tensor::POST_FFW_NORM),
    ..FfnSpec::PLAIN
};

/// The logits' soft cap where no key states it.
const SOFT_CAP: f32 = 30.0;

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let attention = configure_attention(read)?;
    let model = read.model(attention, configure_ffn(read)?)?;
    let soft_cap = read.opt_number(arch::FINAL_LOGIT_SOFTCAPPING)?.unwrap_or(SOFT_CAP);
    if soft_cap < 0.0 {
        return Err(read.wrong(arch::FINAL_LOGIT_SOFTCAPPING, soft_cap, "a positive number, or 0 for none"));
    }
    Ok(ModelConfig {
        embedding_scale: Some((model.hidden_size as f64).sqrt() as f32),
        logits_soft_cap: Some(soft_cap).filter(|cap| *cap > 0.0),
        per_layer_input_size: Some(read.count(arch::EMBEDDING_LENGTH_PER_LAYER_INPUT)?).filter(|n| *n > 0),
        ..model
    })
}

fn configure_attention(read: &Reader<'_>) -> Result<Vec<AttentionConfig>, ConfigError> {
    let window = read.dimension(arch::SLIDING_WINDOW)?;
    let windowed = read.flags(arch::SLIDING_WINDOW_PATTERN)?;
    let theta = read.opt_positive(arch::ROPE_FREQ_BASE_SWA)?;
    let dims = read.opt_dimension(arch::ROPE_DIMENSION_COUNT_SWA)?;
    let head_dim = read.opt_dimension(arch::KEY_LENGTH_SWA)?;
    let value_head_dim = read.opt_dimension(arch::VALUE_LENGTH_SWA)?;
    let mut attention = read.attention(&AttentionDefaults::HALF)?;
    for (layer, windowed) in attention.iter_mut().zip(&windowed) {
        layer.scale = 1.0;
        if !windowed {
            continue;
        }
        layer.sliding_window = Some(window);
        layer.head_dim = head_dim.unwrap_or(layer.head_dim);
        layer.value_head_dim = value_head_dim.or(head_dim).unwrap_or(layer.value_head_dim);
        if let Some(rope) = &mut layer.rope {
            rope.theta = theta.map_or(AttentionDefaults::HALF.rope_theta, f64::from);
            rope.dims = dims.or(head_dim).unwrap_or(rope.dims);
            if rope.dims > layer.head_dim || rope.dims % 2 != 0 {
                let wanted = format!("an even number up to head_dim {}", layer.head_dim);
                return Err(read.wrong(arch::ROPE_DIMENSION_COUNT_SWA, rope.dims, wanted));
            }
        }
    }
    let shared = read.count(arch::SHARED_KV_LAYERS)?;
    let own = attention.len().saturating_sub(shared);
    for i in own..attention.len() {
        // The last earlier layer of its kind that has keys and values.
        let from = (0..own).rev().find(|j| windowed[*j] == windowed[i]);
        if from.is_none() {
            let wanted =
                format!("an earlier layer of each kind of the {} with keys and values", attention.len());
            return Err(read.wrong(arch::SHARED_KV_LAYERS, shared, wanted));
        }
        attention[i].kv_layer = from;
    }
    Ok(attention)
}

/// In models with experts, the MLP beside them stands in each layer as one that all tokens take.
fn configure_ffn(read: &Reader<'_>) -> Result<Vec<FfnConfig>, ConfigError> {
    if read.count(arch::EXPERT_COUNT)? == 0 {
        read.without_effect(&[arch::EXPERT_USED_COUNT, arch::EXPERT_FEED_FORWARD_LENGTH]);
        return read.dense();
    }
    let defaults = MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: true };
    let moe = read.moe(&defaults, read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?, 0)?;
    let beside = read.per_layer(arch::FEED_FORWARD_LENGTH, None)?;
    let layer =
        |width| FfnConfig::Moe(MoeConfig { shared_expert_intermediate_size: Some(width), ..moe.clone() });
    Ok(beside.into_iter().map(layer).collect())
}

fn lower(l: &mut Lowering<'_>) -> Result<(), LowerError> {
    decoder::leave_out_drafts(l);
    let mut x = embedding::lower(l)?;
    let inputs = per_layer_inputs(l, x)?;
    for i in 0..l.config.num_hidden_layers {
        let layer = LayerIdx(i as u32);
        x = attention::lower(l, layer, x, &ATTENTION)?;
        x = parallel_ffn::lower(l, layer, x, &FFN)?;
        if let Some(inputs) = inputs {
            x = add_layer_input(l, layer, x, inputs)?;
        }
        let scale = blk(i, tensor::LAYER_OUTPUT_SCALE);
        if l.has(&scale) {
            let op = Op::Pointwise { function: PointwiseFn::Scale(l.factor(&scale)?) };
            x = only(l.graph.push(Some(layer), "layer_output_scale", op, &[x])?);
        }
        l.graph.tap(Some(layer), Stage::PostFfnResidual, &[x])?;
    }
    lm_head::lower(l, x, of_model::OUTPUT_NORM)
}

/// The further inputs of all layers, side by side [T, layers · width]: of the token, and of the scaled embedding `x`.
fn per_layer_inputs(l: &mut Lowering<'_>, x: ValueId) -> Result<Option<ValueId>, LowerError> {
    let Some(width) = l.config.per_layer_input_size else { return Ok(None) };
    let (layers, tokens) = (l.config.num_hidden_layers, l.graph.inputs.tokens);
    let table = l.matrix(of_model::PER_LAYER_TOKEN_EMBD, l.config.vocab_size, layers * width)?;
    let op = Op::Embed { table, scale: Some((width as f64).sqrt() as f32) };
    let of_token = only(l.graph.push(None, "embed_tokens_per_layer", op, &[tokens])?);
    let weight = l.matrix(of_model::PER_LAYER_MODEL_PROJ, layers * width, l.config.hidden_size)?;
    let scale = Some((1.0 / (l.config.hidden_size as f64).sqrt()) as f32);
    let op = Op::MatMul { weight, bias: None, scale };
    let projected = only(l.graph.push(None, "per_layer_model_projection", op, &[x])?);
    let name = of_model::PER_LAYER_PROJ_NORM;
    let projected = norm::lower(l, None, "per_layer_projection_norm", name, projected, layers)?;
    let sum = only(l.graph.push(None, "per_layer_sum", Op::Add, &[projected, of_token])?);
    let op = Op::Pointwise { function: PointwiseFn::Scale(std::f32::consts::FRAC_1_SQRT_2) };
    Ok(Some(only(l.graph.push(None, "per_layer_inputs", op, &[sum])?)))
}

/// Adds what a layer makes of its further input to the residual stream.
fn add_layer_input(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    inputs: ValueId,
) -> Result<ValueId, LowerError> {
    let Some(width) = l.config.per_layer_input_size else { return Ok(x) };
    let (at, hidden_size) = (Some(layer), l.config.hidden_size);
    let file = |rest: &str| blk(layer.index(), rest);
    let part = Op::Slice { heads: 1, start: layer.index() * width, len: width };
    let input = only(l.graph.push(at, "per_layer_input", part, &[inputs])?);
    let weight = l.matrix(&file(tensor::INP_GATE), width, hidden_size)?;
    let op = Op::MatMul { weight, bias: None, scale: None };
    let gate = only(l.graph.push(at, "per_layer_input_gate", op, &[x])?);
    let act = Op::GatedAct { activation: ActivationFn::GeluTanh };
    let gated = l.graph.push(at, "per_layer_input_gated", act, &[gate, input])?[1];
    let weight = l.matrix(&file(tensor::PROJ), hidden_size, width)?;
    let op = Op::MatMul { weight, bias: None, scale: None };
    let out = only(l.graph.push(at, "per_layer_projection", op, &[gated])?);
    let out = norm::lower(l, at, "post_per_layer_input_norm", &file(tensor::POST_NORM), out, 1)?;
    Ok(only(l.graph.push(at, "per_layer_residual", Op::Add, &[x, out])?))
}
