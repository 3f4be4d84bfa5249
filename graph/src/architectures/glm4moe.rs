//! GLM-4.5, 4.6, 4.7 and Air: RoPE on half of each head, dense first layers, sigmoid router with a selection bias, a
//! shared expert, and layers for drafting that are left out.
//!
//! Definition: Hugging Face transformers, `models/glm4_moe/modeling_glm4_moe.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::{arch, layer as tensor};
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "glm4moe", configure, lower: |l| decoder::lower(l, &DECODER) };

/// Air has no Q/K norm. The norm before the feed-forward part is named after what it stands behind.
const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec {
        qkv_bias: Presence::Optional,
        qk_norm: Presence::Optional,
        ..AttentionSpec::PLAIN
    },
    ffn: FfnSpec { norm: tensor::POST_ATTENTION_NORM, selection_bias: Presence::Required, ..FfnSpec::PLAIN },
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    // On text every section of a position says the same: plain RoPE.
    read.without_effect(&[arch::ROPE_DIMENSION_SECTIONS]);
    let attention = read.attention(&AttentionDefaults { rope_one_in: 2, ..AttentionDefaults::HALF })?;
    let width = read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?;
    let shared_width = read.dimension(arch::EXPERT_SHARED_COUNT)? * width;
    let moe =
        read.moe(&MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: false }, width, shared_width)?;
    let dense = read.count(arch::LEADING_DENSE_BLOCK_COUNT)?;
    read.model(attention, read.moe_where(|layer| layer >= dense, moe)?)
}
