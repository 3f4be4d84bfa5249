//! DBRX: LayerNorm without bias, q, k and v in one tensor and within bounds, softmax router.
//!
//! Definition: Hugging Face transformers, `models/dbrx/modeling_dbrx.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, NormKind, Reader};
use crate::gguf::keys::{arch, layer as tensor};
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "dbrx", configure, lower: |l| decoder::lower(l, &DECODER) };

/// The norm before the feed-forward part is named after what it stands behind.
const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec::PLAIN,
    ffn: FfnSpec { norm: tensor::ATTN_OUTPUT_NORM, ..FfnSpec::PLAIN },
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let mut attention = read.attention(&AttentionDefaults::HALF)?;
    let bound = read.positive(arch::CLAMP_KQV)?;
    attention.iter_mut().for_each(|layer| layer.qkv_bound = Some(bound));
    let defaults = MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: true };
    let moe = read.moe(&defaults, read.dimension(arch::FEED_FORWARD_LENGTH)?, 0)?;
    let ffn = read.moe_where(|_| true, moe)?;
    read.model_with(attention, ffn, NormKind::Layer, read.positive(arch::LAYER_NORM_EPS)?)
}
