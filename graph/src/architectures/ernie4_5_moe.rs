//! ERNIE 4.5: interleaved RoPE, dense layers in front or between, a selection bias on softmax probabilities, shared
//! experts in the smaller model.
//!
//! Definition: Hugging Face transformers, `models/ernie4_5_moe/modeling_ernie4_5_moe.py`.

use super::Architecture;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::{arch, blk, layer as tensor};
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "ernie4_5-moe", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    ffn: FfnSpec { selection_bias: Presence::Required, ..FfnSpec::PLAIN },
    ..DecoderSpec::PLAIN
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let dense = read.count(arch::LEADING_DENSE_BLOCK_COUNT)?;
    let step = read.dimension(arch::INTERLEAVE_MOE_LAYER_STEP)?;
    let routed = |layer: usize| layer >= dense && (layer + 1).is_multiple_of(step);
    // The converter computes the key by the number of KV heads, which is right for some models only: the tensor counts.
    let stated = read.count(arch::EXPERT_SHARED_FEED_FORWARD_LENGTH)?;
    let first = (0..read.num_hidden_layers()?).find(|layer| routed(*layer)).unwrap_or(0);
    let shared_width = read.rows(&blk(first, tensor::FFN_UP_SHEXP)).unwrap_or(stated);
    read.without_effect(&[arch::EXPERT_SHARED_COUNT]);
    let defaults = MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: true };
    let moe = read.moe(&defaults, read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?, shared_width)?;
    read.model(read.attention(&AttentionDefaults::INTERLEAVED)?, read.moe_where(routed, moe)?)
}
