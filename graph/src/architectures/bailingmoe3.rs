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
use crate::config::{ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::{ActivationFn, GateKind, GroupScore};

pub(super) const ROW: Architecture =
    Architecture { name: "bailingmoe3", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec { gate: Some(ActivationFn::Sigmoid), gate_stage: true, ..AttentionSpec::PLAIN },
    ..deepseek2::DECODER
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let shared_width = read.opt_dimension(arch::EXPERT_SHARED_FEED_FORWARD_LENGTH)?;
    let defaults = MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: true };
    let mut model = deepseek2::configure_with(read, &defaults, shared_width, |_| GroupScore::BestTwo)?;
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
