//! Phi-3.5-MoE: LayerNorm, biases everywhere, sparsemixer's choice of experts. Its RoPE is the short one: positions beyond the
//! original context, which have divisors of their own, are not for it.
//!
//! Definition: Hugging Face transformers, `models/phimoe/modeling_phimoe.py`.

use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::lowering::Presence;
use super::{Architecture, LowerError, Lowering};
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, NormKind, Reader};
use crate::gguf::keys::{arch, tensor};
use crate::ir::{GateKind, RopeScaling};

pub(super) const ROW: Architecture = Architecture { name: "phimoe", configure, lower };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec {
        qkv_bias: Presence::Required,
        output_bias: Presence::Required,
        rope_divisors: Presence::Optional,
        rope_divisors_name: tensor::ROPE_FACTORS_SHORT,
        ..AttentionSpec::PLAIN
    },
    ..DecoderSpec::PLAIN
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let mut attention = read.attention(&AttentionDefaults::HALF)?;
    let original = read.opt_dimension(arch::ROPE_SCALING_ORIG_CTX)?;
    let factor = read.opt_positive(arch::ROPE_SCALING_ATTN_FACTOR)?.map(f64::from);
    for layer in &mut attention {
        if let (Some(rope), Some(attention_factor)) = (&mut layer.rope, factor) {
            // Stretched by 1: the factor of cosines and sines is all that is left of it.
            rope.scaling = RopeScaling::Yarn {
                factor: 1.0,
                original_max_position_embeddings: original.unwrap_or(1),
                beta_fast: 32.0,
                beta_slow: 1.0,
                attention_factor,
                truncate: true,
            };
        }
    }
    // Files say 131072, which no released model's attention keeps to.
    read.without_effect(&[arch::SLIDING_WINDOW]);
    let defaults = MoeDefaults { gate: GateKind::SparseMixer, norm_topk_prob: false };
    let moe = read.moe(&defaults, read.dimension(arch::FEED_FORWARD_LENGTH)?, 0)?;
    let (ffn, eps) = (read.moe_where(|_| true, moe)?, read.positive(arch::RMS_EPS)?);
    let model = read.model_with(attention, ffn, NormKind::LayerBiased, eps)?;
    let longest = original.unwrap_or(model.max_position_embeddings).min(model.max_position_embeddings);
    Ok(ModelConfig { max_position_embeddings: longest, ..model })
}

fn lower(l: &mut Lowering<'_>) -> Result<(), LowerError> {
    l.leave_out(tensor::ROPE_FACTORS_LONG, "RoPE beyond the original context, which is not reached");
    decoder::lower(l, &DECODER)
}
