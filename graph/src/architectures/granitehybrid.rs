//! Granite 4.0 H: mamba2, in some layers attention without positions in its place; experts of which the chosen ones' weights sum
//! to 1, with a shared one beside them, or one SwiGLU; factors on the embedding, on what each block adds to the residual stream,
//! on the scores and on the logits.
//!
//! Definition: Hugging Face transformers, `models/granitemoehybrid/modeling_granitemoehybrid.py`.

use super::Architecture;
use super::blocks::decoder::{self, DecoderSpec};
use crate::config::{AttentionDefaults, ConfigError, MixerConfig, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "granitehybrid", configure, lower: |l| decoder::lower(l, &DecoderSpec::PLAIN) };

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    // Rows of q and k are permuted for interleaved RoPE, which most of these models do not have.
    let (mut attention, attends) = read.attention_where_heads(&AttentionDefaults::INTERLEAVED)?;
    let turns = read.opt_flag(arch::ROPE_SCALING_FINETUNED)?.unwrap_or(true);
    let scale = read.opt_factor(arch::ATTENTION_SCALE)?;
    for layer in &mut attention {
        layer.scale = scale.unwrap_or(layer.scale);
        if !turns {
            layer.rope = None;
        }
    }
    let shared_width = read.count(arch::EXPERT_SHARED_FEED_FORWARD_LENGTH)?;
    let ffn = match read.count(arch::EXPERT_COUNT)? {
        0 => read.dense()?,
        _ => {
            let defaults = MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: true };
            let moe = read.moe(&defaults, read.dimension(arch::FEED_FORWARD_LENGTH)?, shared_width)?;
            read.moe_where(|_| true, moe)?
        }
    };
    let mamba2 = read.mamba2()?;
    let mut model = read.model(attention, ffn)?;
    for (layer, attends) in model.layers.iter_mut().zip(attends) {
        if !attends {
            layer.mixer = MixerConfig::Mamba2(mamba2.clone());
        }
    }
    Ok(ModelConfig {
        embedding_scale: read.opt_factor(arch::EMBEDDING_SCALE)?,
        residual_scale: read.opt_factor(arch::RESIDUAL_SCALE)?,
        // The file's number divides.
        logits_scale: read.opt_positive(arch::LOGIT_SCALE)?.map(|scale| 1.0 / scale),
        ..model
    })
}
