//! dots.llm1: per-head Q/K norm, dense first layers, sigmoid router with a selection bias, shared experts.
//!
//! Definition: Hugging Face transformers, `models/dots1/modeling_dots1.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "dots1", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec { qk_norm: Presence::Required, ..AttentionSpec::PLAIN },
    ffn: FfnSpec { selection_bias: Presence::Required, ..FfnSpec::PLAIN },
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let width = read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?;
    let shared_width = read.dimension(arch::EXPERT_SHARED_COUNT)? * width;
    let moe =
        read.moe(&MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: false }, width, shared_width)?;
    let dense = read.count(arch::LEADING_DENSE_BLOCK_COUNT)?;
    let ffn = read.moe_where(|layer| layer >= dense, moe)?;
    read.model(read.attention(&AttentionDefaults::HALF)?, ffn)
}
