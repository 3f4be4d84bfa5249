//! Jamba: mamba1, in some layers attention without positions in its place; experts in some layers, whose weights are a softmax's as
//! it is, one SwiGLU of the same width in the others.
//!
//! Definition: Hugging Face transformers, `models/jamba/modeling_jamba.py`.

use super::Architecture;
use super::blocks::decoder::{self, DecoderSpec};
use crate::config::{AttentionDefaults, ConfigError, MixerConfig, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::{arch, blk, layer as tensor};
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "jamba", configure, lower: |l| decoder::lower(l, &DecoderSpec::PLAIN) };

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let (mut attention, attends) = read.attention_where_heads(&AttentionDefaults::HALF)?;
    for layer in &mut attention {
        layer.rope = None;
    }
    // The tensors say which layers have experts; a model without any has none of their keys.
    let routed = |layer: usize| read.has(&blk(layer, tensor::FFN_GATE_INP));
    let ffn = match read.count(arch::EXPERT_COUNT)? {
        0 => read.dense()?,
        _ => {
            let defaults = MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: false };
            let moe = read.moe(&defaults, read.dimension(arch::FEED_FORWARD_LENGTH)?, 0)?;
            read.moe_where(routed, moe)?
        }
    };
    let mamba1 = read.mamba1()?;
    let mut model = read.model(attention, ffn)?;
    for (layer, attends) in model.layers.iter_mut().zip(attends) {
        if !attends {
            layer.mixer = MixerConfig::Mamba1(mamba1.clone());
        }
    }
    Ok(model)
}
