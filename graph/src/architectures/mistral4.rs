//! Mistral Small 4: DeepSeek's latent attention, queries of far positions made larger, softmax router, a shared expert in
//! every layer.
//!
//! Definition: `fixtures/arch/mistral4/README.md` of this project's fixtures, after Mistral's release.

use super::Architecture;
use super::blocks::decoder::{self, DecoderSpec};
use super::deepseek2;
use crate::config::MoeDefaults;
use crate::ir::{GateKind, GroupScore};

pub(super) const ROW: Architecture = Architecture {
    name: "mistral4",
    configure: |read| {
        deepseek2::configure_with(
            read,
            &MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: false },
            None,
            |_| GroupScore::BestTwo,
        )
    },
    lower: |l| decoder::lower(l, &DecoderSpec::PLAIN),
};
