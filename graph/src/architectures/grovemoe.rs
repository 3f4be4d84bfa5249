//! GroveMoE: Qwen3-MoE's decoder, in which each pair of experts shares a small one that reads what the chosen experts gave.
//!
//! Definition: `fixtures/arch/grovemoe/README.md` of this project's fixtures, after llama.cpp's graph: the model's own code was
//! not at hand.

use super::Architecture;
use super::blocks::decoder;
use super::qwen3::{ATTENTION, DECODER};
use crate::config::{ChunkConfig, ConfigError, ModelConfig, MoeConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "grovemoe", configure, lower: |l| decoder::lower(l, &DECODER) };

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let attention = read.attention(&ATTENTION)?;
    let defaults = MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: true };
    let moe = read.moe(&defaults, read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?, 0)?;
    let experts_per_group = read.dimension(arch::EXPERTS_PER_GROUP)?;
    if !moe.num_experts.is_multiple_of(experts_per_group) {
        let wanted = format!("a divisor of {} experts", moe.num_experts);
        return Err(read.wrong(arch::EXPERTS_PER_GROUP, experts_per_group, wanted));
    }
    if !moe.norm_topk_prob || moe.gate != GateKind::Softmax {
        let found = format!("{:?}, {}", moe.gate, moe.norm_topk_prob);
        return Err(read.wrong(arch::EXPERT_GATING_FUNC, found, "a softmax whose chosen weights sum to 1"));
    }
    let width = read.opt_dimension(arch::EXPERT_CHUNK_FEED_FORWARD_LENGTH)?;
    let chunks = ChunkConfig {
        experts_per_group,
        // Files without the key have experts as wide as a head.
        intermediate_size: width.unwrap_or(attention.first().map_or(1, |a| a.head_dim)),
        scale: read.positive(arch::EXPERT_GROUP_SCALE)?,
    };
    let moe = MoeConfig { chunks: Some(chunks), ..moe };
    read.model(attention, read.moe_where(|_| true, moe)?)
}
