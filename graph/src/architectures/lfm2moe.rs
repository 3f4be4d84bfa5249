//! LFM2 with experts (8B-A1B, 24B-A2B): short convolutions, in some layers attention in their place; dense first layers;
//! sigmoid router with a selection bias. The final norm has the embedding's name.
//!
//! Definition: Hugging Face transformers, `models/lfm2_moe/modeling_lfm2_moe.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, MixerConfig, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::{arch, tensor};
use crate::ir::GateKind;

pub(super) const ROW: Architecture = Architecture {
    name: "lfm2moe",
    configure,
    lower: |l| decoder::lower_to(l, &DECODER, tensor::TOKEN_EMBD_NORM),
};

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec { qk_norm: Presence::Required, ..AttentionSpec::PLAIN },
    ffn: FfnSpec { selection_bias: Presence::Required, ..FfnSpec::PLAIN },
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let defaults = AttentionDefaults { rope_theta: 1e6, ..AttentionDefaults::HALF };
    let (attention, attends) = read.attention_where_heads(&defaults)?;
    let kernel = read.conv_kernel(arch::SHORTCONV_L_CACHE)?;
    let defaults = MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: true };
    let moe = read.moe(&defaults, read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?, 0)?;
    let dense = read.count(arch::LEADING_DENSE_BLOCK_COUNT)?;
    let mut model = read.model(attention, read.moe_where(|layer| layer >= dense, moe)?)?;
    for (layer, attends) in model.layers.iter_mut().zip(attends) {
        if !attends {
            layer.mixer = MixerConfig::ShortConv { kernel };
        }
    }
    Ok(model)
}
