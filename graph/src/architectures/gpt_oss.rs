//! gpt-oss: layers with a window and layers without by turns, attention sinks, biases everywhere, softmax over the chosen
//! experts, clamped SwiGLU, YaRN whose ramp is not rounded to whole pairs.
//!
//! Definition: Hugging Face transformers, `models/gpt_oss/modeling_gpt_oss.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::{arch, layer as tensor};
use crate::ir::{ActivationFn, GateKind, RopeScaling};

pub(super) const ROW: Architecture =
    Architecture { name: "gpt-oss", configure, lower: |l| decoder::lower(l, &DECODER) };

/// The norm before the feed-forward part is named after what it stands behind.
const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec {
        qkv_bias: Presence::Required,
        output_bias: Presence::Required,
        sinks: Presence::Required,
        ..AttentionSpec::PLAIN
    },
    ffn: FfnSpec {
        norm: tensor::POST_ATTENTION_NORM,
        router_bias: Presence::Required,
        expert_bias: Presence::Required,
        // No key says the two numbers.
        expert_activation: ActivationFn::ClampedSwiglu { alpha: 1.702, limit: 7.0 },
        ..FfnSpec::PLAIN
    },
};

/// Of so many layers the last sees everything.
const PERIOD: usize = 2;

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let window = read.dimension(arch::SLIDING_WINDOW)?;
    let windowed = read.flags_or_period(arch::SLIDING_WINDOW_PATTERN, PERIOD)?;
    let mut attention = read.attention(&AttentionDefaults::HALF)?;
    for (layer, windowed) in attention.iter_mut().zip(windowed) {
        layer.sliding_window = windowed.then_some(window);
        // The released models say so; no key does.
        if let Some(rope) = &mut layer.rope
            && let RopeScaling::Yarn { truncate, .. } = &mut rope.scaling
        {
            *truncate = false;
        }
    }
    let defaults = MoeDefaults { gate: GateKind::SoftmaxAfterTopK, norm_topk_prob: false };
    let moe = read.moe(&defaults, read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?, 0)?;
    read.model(attention, read.moe_where(|_| true, moe)?)
}
