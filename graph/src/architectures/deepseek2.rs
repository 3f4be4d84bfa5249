//! DeepSeek-V2 and V3 with all that is made like them (R1, Kimi-K2, GLM-4.7-Flash): latent attention, dense first layers,
//! softmax or sigmoid router, in some with a selection bias that chooses from the best groups of experts, shared experts.
//!
//! Definition: Hugging Face transformers, `models/deepseek_v2/modeling_deepseek_v2.py`,
//! `models/deepseek_v3/modeling_deepseek_v3.py`, `models/glm4_moe_lite/modeling_glm4_moe_lite.py`.

use super::Architecture;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{ConfigError, ModelConfig, MoeConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::{GateKind, GroupScore};

pub(super) const ROW: Architecture =
    Architecture { name: "deepseek2", configure, lower: |l| decoder::lower(l, &DECODER) };

pub(super) const DECODER: DecoderSpec = DecoderSpec {
    ffn: FfnSpec { selection_bias: Presence::Optional, ..FfnSpec::PLAIN },
    ..DecoderSpec::PLAIN
};

/// Layers (with or without the draft's) and vocabulary of GLM-4.7-Flash, of whose files some do not say that its router's
/// gate is a sigmoid.
const GLM_FLASH: ([usize; 2], usize) = ([47, 48], 154_880);

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let (blocks, vocabulary) = GLM_FLASH;
    let is_flash = blocks.contains(&read.num_blocks()?) && read.vocab_size()? == vocabulary;
    let gate = if is_flash { GateKind::Sigmoid } else { GateKind::Softmax };
    let defaults = MoeDefaults { gate, norm_topk_prob: false };
    // V2 ranks its groups by their best, and has a softmax; those behind it by their best two.
    configure_with(read, &defaults, None, |gate| match gate {
        GateKind::Softmax => GroupScore::Best,
        GateKind::Sigmoid | GateKind::SoftmaxAfterTopK | GateKind::SparseMixer | GateKind::SqrtSoftplus => {
            GroupScore::BestTwo
        }
    })
}

/// What all have whose attention is latent; `shared_width` of all shared experts where it is not theirs times a routed one's.
pub(super) fn configure_with(
    read: &Reader<'_>,
    defaults: &MoeDefaults,
    shared_width: Option<usize>,
    group_score: impl Fn(GateKind) -> GroupScore,
) -> Result<ModelConfig, ConfigError> {
    let attention = read.latent_attention()?;
    let width = read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?;
    let shared_width = shared_width.unwrap_or(read.count(arch::EXPERT_SHARED_COUNT)? * width);
    let moe = read.moe(defaults, width, shared_width)?;
    let moe = MoeConfig { groups: read.expert_groups(group_score(moe.gate))?, ..moe };
    let dense = read.count(arch::LEADING_DENSE_BLOCK_COUNT)?;
    read.model(attention, read.moe_where(|layer| layer >= dense, moe)?)
}
