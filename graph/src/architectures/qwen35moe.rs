//! Qwen3.5 and Qwen3.6 with experts: gated delta nets, in every fourth layer attention with an output gate and RoPE on a quarter
//! of each head; a shared expert with a gate; draft layers that are left out. `qwen35` is the dense sibling.
//!
//! Definition: Hugging Face transformers, `models/qwen3_5_moe/modeling_qwen3_5_moe.py`, `models/qwen3_5/modeling_qwen3_5.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{
    AttentionDefaults, ConfigError, DeltaNetConfig, FfnConfig, MixerConfig, ModelConfig, MoeDefaults, Reader,
};
use crate::gguf::keys::{arch, layer as tensor};
use crate::ir::{GateKind, HeadMap};

pub(super) const ROW: Architecture =
    Architecture { name: "qwen35moe", configure, lower: |l| decoder::lower(l, &DECODER) };

/// Without experts.
pub(super) const DENSE_ROW: Architecture =
    Architecture { name: "qwen35", configure: configure_dense, lower: |l| decoder::lower(l, &DECODER) };

pub(super) const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec { qk_norm: Presence::Required, output_gate: true, ..AttentionSpec::PLAIN },
    ffn: FfnSpec {
        norm: tensor::POST_ATTENTION_NORM,
        shared_expert_gate: Presence::Required,
        ..FfnSpec::PLAIN
    },
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    // On text every section of a position says the same: plain RoPE.
    read.without_effect(&[arch::ROPE_DIMENSION_SECTIONS]);
    model(read, experts(read)?, HeadMap::Tiled)
}

fn configure_dense(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    read.without_effect(&[arch::ROPE_DIMENSION_SECTIONS]);
    model(read, read.dense()?, HeadMap::Tiled)
}

/// The experts of every layer.
pub(super) fn experts(read: &Reader<'_>) -> Result<Vec<FfnConfig>, ConfigError> {
    let width = read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?;
    let shared_width = read.count(arch::EXPERT_SHARED_FEED_FORWARD_LENGTH)?;
    let defaults = MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: true };
    read.moe_where(|_| true, read.moe(&defaults, width, shared_width)?)
}

/// The model of these feed-forward parts, whose delta nets have their heads so.
pub(super) fn model(
    read: &Reader<'_>,
    ffn: Vec<FfnConfig>,
    head_map: HeadMap,
) -> Result<ModelConfig, ConfigError> {
    let attention =
        read.attention(&AttentionDefaults { rope_theta: 1e7, rope_one_in: 4, ..AttentionDefaults::HALF })?;
    let recurrent = recurrent_layers(read)?;
    let delta_net = delta_net(read, head_map)?;
    let mut model = read.model(attention, ffn)?;
    for (layer, recurrent) in model.layers.iter_mut().zip(recurrent) {
        if recurrent {
            layer.mixer = MixerConfig::DeltaNet(delta_net.clone());
        }
    }
    Ok(model)
}

/// Which layers are recurrent: a list, or all but every so many-th.
fn recurrent_layers(read: &Reader<'_>) -> Result<Vec<bool>, ConfigError> {
    let interval = read.opt_dimension(arch::FULL_ATTENTION_INTERVAL)?.unwrap_or(4);
    match read.opt_flags(arch::RECURRENT_LAYERS)? {
        Some(layers) => Ok(layers),
        None => Ok((1..=read.num_hidden_layers()?).map(|layer| !layer.is_multiple_of(interval)).collect()),
    }
}

fn delta_net(read: &Reader<'_>, head_map: HeadMap) -> Result<DeltaNetConfig, ConfigError> {
    let (key_heads, value_heads) =
        (read.dimension(arch::SSM_GROUP_COUNT)?, read.dimension(arch::SSM_TIME_STEP_RANK)?);
    let (dim, inner) = (read.dimension(arch::SSM_STATE_SIZE)?, read.dimension(arch::SSM_INNER_SIZE)?);
    if !value_heads.is_multiple_of(key_heads) {
        let wanted = format!("a multiple of {key_heads} key heads");
        return Err(read.wrong(arch::SSM_TIME_STEP_RANK, value_heads, wanted));
    }
    if value_heads.checked_mul(dim) != Some(inner) {
        let wanted = format!("{value_heads} heads of {dim}");
        return Err(read.wrong(arch::SSM_INNER_SIZE, inner, wanted));
    }
    Ok(DeltaNetConfig {
        num_key_heads: key_heads,
        num_value_heads: value_heads,
        key_head_dim: dim,
        value_head_dim: dim,
        conv_kernel: read.conv_kernel(arch::SSM_CONV_KERNEL)?,
        head_map,
    })
}
