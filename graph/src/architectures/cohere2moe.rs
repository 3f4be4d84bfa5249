//! Cohere's models with experts: one norm, LayerNorm or RMSNorm, feeds attention and the feed-forward part side by side;
//! layers with a window and dense layers have interleaved RoPE, the others none; the mean of the routed and the shared
//! experts; a factor on the logits.
//!
//! Definition: Hugging Face transformers, `models/cohere2_moe/modeling_cohere2_moe.py`.

use super::blocks::attention::{self, AttentionSpec};
use super::blocks::ffn::{self, FfnSpec};
use super::blocks::{decoder, embedding, lm_head};
use super::{Architecture, LowerError, Lowering, only};
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, NormKind, Reader};
use crate::gguf::keys::{arch, blk, layer as tensor, tensor as of_model};
use crate::ir::{GateKind, LayerIdx, Op, Stage};

pub(super) const ROW: Architecture = Architecture { name: "cohere2moe", configure, lower };

const FFN: FfnSpec = FfnSpec { mean_with_shared_expert: true, ..FfnSpec::PLAIN };

/// Of so many layers the first sees everything.
const PERIOD: usize = 4;

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let window = read.dimension(arch::SLIDING_WINDOW)?;
    let windowed = read.flags_or_first(arch::SLIDING_WINDOW_PATTERN, PERIOD)?;
    let dense = read.count(arch::LEADING_DENSE_BLOCK_COUNT)?;
    let mut attention = read.attention(&AttentionDefaults::INTERLEAVED)?;
    for (i, (layer, windowed)) in attention.iter_mut().zip(windowed).enumerate() {
        if windowed {
            layer.sliding_window = Some(window);
        } else if i >= dense {
            layer.rope = None;
        }
    }
    // The shared expert's width is stated by itself; one that is stated without its tensors is none.
    read.without_effect(&[arch::EXPERT_SHARED_COUNT]);
    let shared_width = read.count(arch::EXPERT_SHARED_FEED_FORWARD_LENGTH)?;
    let shared_width = if read.has(&blk(dense, tensor::FFN_UP_SHEXP)) { shared_width } else { 0 };
    let defaults = MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: false };
    let mut moe = read.moe(&defaults, read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?, shared_width)?;
    if moe.gate == GateKind::Softmax {
        moe.gate = GateKind::SoftmaxAfterTopK;
    }
    let ffn = read.moe_where(|layer| layer >= dense, moe)?;
    let (kind, eps) = match (read.opt_positive(arch::RMS_EPS)?, read.opt_positive(arch::LAYER_NORM_EPS)?) {
        (Some(eps), _) => (NormKind::Rms, eps),
        (None, Some(eps)) => (NormKind::Layer, eps),
        (None, None) => (NormKind::Layer, read.positive(arch::LAYER_NORM_EPS)?),
    };
    let model = read.model_with(attention, ffn, kind, eps)?;
    Ok(ModelConfig { logits_scale: Some(read.positive(arch::LOGIT_SCALE)?), ..model })
}

fn lower(l: &mut Lowering<'_>) -> Result<(), LowerError> {
    decoder::leave_out_drafts(l);
    let mut x = embedding::lower(l)?;
    for i in 0..l.config.num_hidden_layers {
        let (layer, at) = (LayerIdx(i as u32), Some(LayerIdx(i as u32)));
        let normed = attention::normed_input(l, layer, x, &AttentionSpec::PLAIN)?;
        let (attended, width) = attention::branch(l, layer, normed, &AttentionSpec::PLAIN)?;
        let attended = attention::output(l, layer, attended, width, &AttentionSpec::PLAIN)?;
        let fed = ffn::branch(l, layer, [normed, x, x], &FFN)?.scaled;
        let residual = only(l.graph.push(at, "attn_residual", Op::Add, &[x, attended])?);
        x = only(l.graph.push(at, "ffn_residual", Op::Add, &[residual, fed])?);
        l.graph.tap(at, Stage::PostFfnResidual, &[x])?;
    }
    lm_head::lower(l, x, of_model::OUTPUT_NORM)
}
