//! Llama and Mistral, dense, and Mixtral with experts: interleaved RoPE on rows that the converter has permuted for it,
//! softmax over the chosen experts.
//!
//! Definition: Hugging Face transformers, `models/llama/modeling_llama.py`, `models/mixtral/modeling_mixtral.py`.

use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::lowering::Presence;
use super::{Architecture, LowerError, Lowering};
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::{arch, blk, layer as tensor};
use crate::ir::GateKind;

pub(super) const ROW: Architecture = Architecture { name: "llama", configure, lower };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec {
        qkv_bias: Presence::Optional,
        output_bias: Presence::Optional,
        rope_divisors: Presence::Optional,
        ..AttentionSpec::PLAIN
    },
    ..DecoderSpec::PLAIN
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let attention = read.attention(&AttentionDefaults::INTERLEAVED)?;
    if read.count(arch::EXPERT_COUNT)? == 0 {
        read.without_effect(&[arch::EXPERT_USED_COUNT]);
        return read.model(attention, read.dense()?);
    }
    let defaults = MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: true };
    let moe = read.moe(&defaults, read.dimension(arch::FEED_FORWARD_LENGTH)?, 0)?;
    read.model(attention, read.moe_where(|_| true, moe)?)
}

fn lower(l: &mut Lowering<'_>) -> Result<(), LowerError> {
    let first = blk(0, tensor::FFN_GATE_FIRST_EXPERT);
    l.refuse(&first, "an expert by itself, as files from before April 2024 have it,")?;
    decoder::lower(l, &DECODER)
}
