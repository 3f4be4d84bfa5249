//! Hunyuan-A13B: per-head Q/K norm behind RoPE, one shared expert. The converter has stretched RoPE's base already.
//!
//! Definition: Hugging Face transformers, `models/hunyuan_v1_moe/modeling_hunyuan_v1_moe.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "hunyuan-moe", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec {
        qk_norm: Presence::Required,
        qk_norm_after_rope: true,
        ..AttentionSpec::PLAIN
    },
    ..DecoderSpec::PLAIN
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let shared_width = match read.opt_dimension(arch::EXPERT_SHARED_FEED_FORWARD_LENGTH)? {
        Some(width) => width,
        None => read.dimension(arch::FEED_FORWARD_LENGTH)?,
    };
    read.only(arch::EXPERT_SHARED_COUNT, 1)?;
    let defaults = MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: true };
    let moe = read.moe(&defaults, read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?, shared_width)?;
    read.model(read.attention(&AttentionDefaults::HALF)?, read.moe_where(|_| true, moe)?)
}
