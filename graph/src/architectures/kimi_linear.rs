//! Kimi Linear: Kimi delta attention, in every fourth layer latent attention without RoPE; dense first layers, sigmoid router with
//! a selection bias, a shared expert.
//!
//! Definition: Kimi Linear (arXiv 2510.26692), Hugging Face transformers, `models/kimi_linear/modeling_kimi_linear.py`.

use super::Architecture;
use super::blocks::decoder;
use super::deepseek2::{DECODER, configure_with};
use crate::config::{ConfigError, DeltaNetConfig, MixerConfig, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::{GateKind, GroupScore, HeadMap};

pub(super) const ROW: Architecture =
    Architecture { name: "kimi-linear", configure, lower: |l| decoder::lower(l, &DECODER) };

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    // Nothing is rotated, whatever the file says of how.
    read.without_effect(&[arch::ROPE_FREQ_BASE]);
    let defaults = MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: true };
    let mut model = configure_with(read, &defaults, None, |_| GroupScore::BestTwo)?;
    for layer in &mut model.layers {
        layer.attention.rope = None;
    }
    with_kda(read, model, None)
}

/// The model with Kimi delta attention in the layers that have no KV head.
pub(super) fn with_kda(
    read: &Reader<'_>,
    mut model: ModelConfig,
    decay_bound: Option<f32>,
) -> Result<ModelConfig, ConfigError> {
    let conv_kernel = read.conv_kernel(arch::SSM_CONV_KERNEL)?;
    let head_dim = read.dimension(arch::KDA_HEAD_DIM)?;
    let kv_heads = read.counts(arch::HEAD_COUNT_KV)?;
    if let Some(found) = kv_heads.iter().find(|n| **n > 1) {
        return Err(read.wrong(
            arch::HEAD_COUNT_KV,
            found,
            "0 for Kimi delta attention, 1 for latent attention",
        ));
    }
    for (layer, _) in model.layers.iter_mut().zip(kv_heads).filter(|(_, kv_heads)| *kv_heads == 0) {
        let heads = layer.attention.num_attention_heads;
        let net = DeltaNetConfig {
            num_key_heads: heads,
            num_value_heads: heads,
            key_head_dim: head_dim,
            value_head_dim: head_dim,
            conv_kernel,
            head_map: HeadMap::Tiled,
        };
        layer.mixer = MixerConfig::Kda { net, decay_bound };
    }
    Ok(model)
}
