//! K-EXAONE: three of four layers have a window and RoPE, the others neither; dense first layers, sigmoid router with a
//! selection bias, shared experts.
//!
//! Definition: Hugging Face transformers, `models/exaone_moe/modeling_exaone_moe.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "exaone-moe", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec {
        qk_norm: Presence::Required,
        rope_divisors: Presence::Optional,
        ..AttentionSpec::PLAIN
    },
    ffn: FfnSpec { selection_bias: Presence::Required, ..FfnSpec::PLAIN },
};

/// Of so many layers the last sees everything.
const PERIOD: usize = 4;

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let window = read.dimension(arch::SLIDING_WINDOW)?;
    let pattern = read.opt_flags(arch::SLIDING_WINDOW_PATTERN)?;
    let mut attention = read.attention(&AttentionDefaults::HALF)?;
    for (i, layer) in attention.iter_mut().enumerate() {
        match pattern.as_ref().map_or((i + 1) % PERIOD != 0, |pattern| pattern[i]) {
            true => layer.sliding_window = Some(window),
            false => layer.rope = None,
        }
    }
    let width = read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?;
    // States the same product; a shared expert of another width is refused by its tensors' shapes.
    read.without_effect(&[arch::EXPERT_SHARED_FEED_FORWARD_LENGTH]);
    let shared_width = read.count(arch::EXPERT_SHARED_COUNT)? * width;
    let moe =
        read.moe(&MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: true }, width, shared_width)?;
    let dense = read.count(arch::LEADING_DENSE_BLOCK_COUNT)?;
    read.model(attention, read.moe_where(|layer| layer >= dense, moe)?)
}
