//! Granite 3 with experts, and PowerMoE: factors on the embedding, on what each block adds to the residual stream, on the
//! scores and on the logits; interleaved RoPE on rows that the converter has permuted for it; in some a shared expert.
//!
//! Definition: Hugging Face transformers, `models/granitemoe/modeling_granitemoe.py`,
//! `models/granitemoeshared/modeling_granitemoeshared.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "granitemoe", configure, lower: |l| decoder::lower(l, &DECODER) };

/// A bias of o_proj, which no released model has, would need the residual scale too: a file with one is refused.
const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec {
        qkv_bias: Presence::Optional,
        rope_divisors: Presence::Optional,
        ..AttentionSpec::PLAIN
    },
    ..DecoderSpec::PLAIN
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let mut attention = read.attention(&AttentionDefaults::INTERLEAVED)?;
    if let Some(scale) = read.opt_factor(arch::ATTENTION_SCALE)? {
        attention.iter_mut().for_each(|layer| layer.scale = scale);
    }
    let defaults = MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: true };
    let shared_width = read.count(arch::EXPERT_SHARED_FEED_FORWARD_LENGTH)?;
    let moe = read.moe(&defaults, read.dimension(arch::FEED_FORWARD_LENGTH)?, shared_width)?;
    let model = read.model(attention, read.moe_where(|_| true, moe)?)?;
    Ok(ModelConfig {
        embedding_scale: read.opt_factor(arch::EMBEDDING_SCALE)?,
        residual_scale: read.opt_factor(arch::RESIDUAL_SCALE)?,
        // The file's number divides.
        logits_scale: Some(1.0 / read.positive(arch::LOGIT_SCALE)?),
        ..model
    })
}
