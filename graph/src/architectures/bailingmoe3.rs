//! Ling 3.0: Kimi delta attention with a bounded decay, in some layers latent attention with a sigmoid gate a head; dense first
//! layers, sigmoid router with a selection bias that chooses from the best groups of experts, a shared expert; layers for
//! drafting are left out.
//!
//! Definition: `fixtures/arch/bailingmoe3/README.md` of this project's fixtures, after inclusionAI's release.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::deepseek2;
use super::kimi_linear::with_kda;
use crate::config::{ConfigError, ModelConfig, MoeConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::{ActivationFn, GateKind, GroupScore};

pub(super) const ROW: Architecture =
    Architecture { name: "bailingmoe3", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec { gate: Some(ActivationFn::Sigmoid), gate_stage: true, ..AttentionSpec::PLAIN },
    ..deepseek2::DECODER
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let attention = read.latent_attention()?;
    let width = read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?;
    // The width of all shared experts; they stand side by side in one tensor.
    let shared_width = match read.opt_dimension(arch::EXPERT_SHARED_FEED_FORWARD_LENGTH)? {
        Some(all) => all,
        None => read.count(arch::EXPERT_SHARED_COUNT)? * width,
    };
    read.without_effect(&[arch::EXPERT_SHARED_COUNT]);
    let defaults = MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: true };
    let moe = MoeConfig {
        groups: read.expert_groups(GroupScore::BestTwo)?,
        ..read.moe(&defaults, width, shared_width)?
    };
    let dense = read.count(arch::LEADING_DENSE_BLOCK_COUNT)?;
    let mut model = read.model(attention, read.moe_where(|layer| layer >= dense, moe)?)?;
    read.swiglu_limits(&mut model)?;
    let bound = read.opt_number(arch::KDA_GATE_LOWER_BOUND)?;
    let is_bounded = read.opt_flag(arch::KDA_SAFE_GATE)?.unwrap_or(bound.is_some());
    let decay_bound = match (is_bounded, bound) {
        (true, Some(bound)) if bound < 0.0 => Some(bound),
        (true, found) => {
            let found = found.map_or("no such key".to_owned(), |x| x.to_string());
            return Err(read.wrong(arch::KDA_GATE_LOWER_BOUND, found, "a number below 0"));
        }
        (false, _) => None,
    };
    with_kda(read, model, decay_bound)
}
