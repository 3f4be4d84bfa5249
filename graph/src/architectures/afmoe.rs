//! Arcee's Trinity: an embedding scale, norms in front of and behind each part, per-head Q/K norm, an output gate, layers with
//! a window and RoPE or neither, dense first layers, sigmoid router with a selection bias, shared experts.
//!
//! Definition: Hugging Face transformers, `models/afmoe/modeling_afmoe.py`.

use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::embedding;
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use super::{Architecture, LowerError, Lowering, only};
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::{arch, layer as tensor, tensor as of_model};
use crate::ir::{ActivationFn, GateKind, Op, PointwiseFn};

pub(super) const ROW: Architecture = Architecture { name: "afmoe", configure, lower };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec {
        qk_norm: Presence::Required,
        gate: Some(ActivationFn::Sigmoid),
        post_norm: Some(tensor::POST_ATTENTION_NORM),
        ..AttentionSpec::PLAIN
    },
    ffn: FfnSpec {
        selection_bias: Presence::Optional,
        post_norm: Some(tensor::POST_FFW_NORM),
        ..FfnSpec::PLAIN
    },
};

/// Of so many layers the last sees everything.
const PERIOD: usize = 4;

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let window = Some(read.count(arch::SLIDING_WINDOW)?).filter(|window| *window > 0);
    let windowed = read.flags_or_period(arch::SLIDING_WINDOW_PATTERN, PERIOD)?;
    let mut attention = read.attention(&AttentionDefaults::HALF)?;
    for (layer, windowed) in attention.iter_mut().zip(windowed) {
        match windowed {
            true => layer.sliding_window = window,
            false => layer.rope = None,
        }
    }
    let width = read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?;
    let shared_width = read.count(arch::EXPERT_SHARED_COUNT)? * width;
    let defaults = MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: false };
    let moe = read.moe(&defaults, width, shared_width)?;
    let dense = read.count(arch::LEADING_DENSE_BLOCK_COUNT)?;
    read.model(attention, read.moe_where(|layer| layer >= dense, moe)?)
}

fn lower(l: &mut Lowering<'_>) -> Result<(), LowerError> {
    // No key says the factor, and the stage is what the table gives.
    let x = embedding::lower(l)?;
    let function = PointwiseFn::Scale((l.config.hidden_size as f64).sqrt() as f32);
    let x = only(l.graph.push(None, "embedding_scale", Op::Pointwise { function }, &[x])?);
    decoder::lower_from(l, x, &DECODER, of_model::OUTPUT_NORM)
}
