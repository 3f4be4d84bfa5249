//! Llama 4: three of four layers have RoPE and see their chunk alone, every fourth has neither RoPE nor chunks and queries that
//! grow with their position; Q/K norm without weight behind RoPE; one expert a token, whose input the router's sigmoid
//! multiplies, and a shared expert; dense layers between.
//!
//! Definition: Hugging Face transformers, `models/llama4/modeling_llama4.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::{GateKind, PositionScaleAttrs};

pub(super) const ROW: Architecture =
    Architecture { name: "llama4", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec { rope_divisors: Presence::Optional, ..AttentionSpec::PLAIN },
    ffn: FfnSpec { weights_on_input: true, ..FfnSpec::PLAIN },
};

/// Of so many layers the last sees everything.
const PERIOD: usize = 4;
/// Positions of a chunk, and those that share a factor of the queries. No key says them.
const CHUNK: usize = 8192;
const TEMPERATURE: PositionScaleAttrs = PositionScaleAttrs { scale: 0.1, length: CHUNK, offset: 1 };
/// As many experts has Maverick alone, which has no Q/K norm.
const MAVERICK_EXPERTS: usize = 128;

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let mut attention = read.attention(&AttentionDefaults::INTERLEAVED)?;
    let defaults = MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: false };
    let width = read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?;
    let moe = read.moe(&defaults, width, width)?;
    read.only(arch::EXPERT_USED_COUNT, 1)?;
    // A window of 0 stands for small models that see everything everywhere; none at all for those with chunks.
    let chunked = read.opt_number(arch::SLIDING_WINDOW)?;
    if let Some(window) = chunked.filter(|window| *window != 0.0) {
        return Err(read.wrong(arch::SLIDING_WINDOW, window, "0 or no such key"));
    }
    let normed = moe.num_experts != MAVERICK_EXPERTS;
    for (i, layer) in attention.iter_mut().enumerate() {
        match (chunked, (i + 1) % PERIOD) {
            (Some(_), _) => layer.plain_qk_norm = normed,
            (None, 0) => {
                layer.rope = None;
                layer.temperature = Some(TEMPERATURE);
            }
            (None, _) => {
                layer.chunk = Some(CHUNK);
                layer.plain_qk_norm = normed;
            }
        }
    }
    let step = read.opt_dimension(arch::INTERLEAVE_MOE_LAYER_STEP)?.unwrap_or(1);
    read.model(attention, read.moe_where(|layer| (layer + 1) % step == 0, moe)?)
}
