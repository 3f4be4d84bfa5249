//! Ling 2.0 and Ring 2.0: per-head Q/K norm, RoPE on half of each head, dense first layers, sigmoid router with a selection
//! bias that chooses from the best groups of experts, shared experts, and layers for drafting that are left out.
//!
//! Definition: `fixtures/arch/bailingmoe2/README.md` of this project's fixtures, after inclusionAI's release.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::{GateKind, GroupScore};

pub(super) const ROW: Architecture =
    Architecture { name: "bailingmoe2", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec { qk_norm: Presence::Required, ..AttentionSpec::PLAIN },
    ffn: FfnSpec { selection_bias: Presence::Optional, ..FfnSpec::PLAIN },
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let attention = read.attention(&AttentionDefaults { rope_one_in: 2, ..AttentionDefaults::HALF })?;
    let width = read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?;
    // The width of one shared expert; they stand side by side in one tensor.
    let shared_width = read.opt_dimension(arch::EXPERT_SHARED_FEED_FORWARD_LENGTH)?.unwrap_or(width);
    let shared_width = shared_width * read.dimension(arch::EXPERT_SHARED_COUNT)?;
    let defaults = MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: false };
    let moe = MoeConfig {
        groups: read.expert_groups(GroupScore::BestTwo)?,
        ..read.moe(&defaults, width, shared_width)?
    };
    let dense = read.count(arch::LEADING_DENSE_BLOCK_COUNT)?;
    read.model(attention, read.moe_where(|layer| layer >= dense, moe)?)
}
