//! DeepSeek-V4: residual streams that are mixed around each block (hyper-connections), attention over a window and over
//! compressed entries with an indexer, experts by a table of tokens in the first layers, else by a router whose gate is the
//! root of a softplus, a shared expert, SwiGLU with limits in front of its silu.
//!
//! Definition: Hugging Face transformers, `models/deepseek_v4/modeling_deepseek_v4.py`.

use super::blocks::ffn::{self, FfnSpec};
use super::blocks::hyper::{self, HyperSpec};
use super::blocks::{compressed_attention, decoder, embedding, lm_head, norm};
use super::lowering::Presence;
use super::{Architecture, LowerError, Lowering};
use crate::config::{
    AttentionConfig, AttentionDefaults, CompressedConfig, ConfigError, FfnConfig, HyperConfig, IndexerConfig,
    MixerConfig, ModelConfig, MoeConfig, MoeDefaults, Reader,
};
use crate::gguf::keys::{arch, blk, layer as tensor, tensor as of_model};
use crate::ir::{GateKind, LayerIdx, RopePairing, RopeScaling, Stage};

pub(super) const ROW: Architecture = Architecture { name: "deepseek4", configure, lower };

/// Positions of an entry that has an indexer, and whose window the next entry has too.
const OVERLAPPING: usize = 4;
/// Positions of an entry without them.
const APART: usize = 128;

const FFN: FfnSpec =
    FfnSpec { selection_bias: Presence::Required, limit_before_silu: true, ..FfnSpec::PLAIN };

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let ratios = read.at_least_one_a_layer(arch::COMPRESS_RATIOS)?;
    let attention = attention(read, &ratios)?;
    let defaults = MoeDefaults { gate: GateKind::SqrtSoftplus, norm_topk_prob: true };
    let width = read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?;
    let shared = read.count(arch::EXPERT_SHARED_COUNT)? * width;
    let moe = read.moe(&defaults, width, shared)?;
    if matches!(moe.gate, GateKind::SoftmaxAfterTopK | GateKind::SparseMixer) {
        return Err(read.wrong(arch::EXPERT_GATING_FUNC, 3, "1, 2 or 4"));
    }
    let by_token = read.count(arch::HASH_LAYER_COUNT)?;
    let layers =
        (0..ratios.len()).map(|i| FfnConfig::Moe(MoeConfig { by_token: i < by_token, ..moe.clone() }));
    let mut model = read.model(attention, layers.collect())?;
    read.swiglu_limits(&mut model)?;
    let (heads, groups) = (read.dimension(arch::HEAD_COUNT)?, read.dimension(arch::OUTPUT_GROUP_COUNT)?);
    if !heads.is_multiple_of(groups) {
        return Err(read.wrong(arch::OUTPUT_GROUP_COUNT, groups, format!("a divisor of {heads} heads")));
    }
    let (q_lora_rank, o_lora_rank) =
        (read.dimension(arch::Q_LORA_RANK)?, read.dimension(arch::OUTPUT_LORA_RANK)?);
    for (layer, ratio) in model.layers.iter_mut().zip(&ratios) {
        layer.mixer = MixerConfig::Compressed(CompressedConfig {
            q_lora_rank,
            o_groups: groups,
            o_lora_rank,
            ratio: Some(*ratio).filter(|n| *n > 0),
            overlap: *ratio == OVERLAPPING,
        });
    }
    let hyper = HyperConfig {
        streams: read.dimension(arch::HYPER_CONNECTION_COUNT)?,
        iterations: read.dimension(arch::HYPER_CONNECTION_ITERATIONS)?,
        eps: read.positive(arch::HYPER_CONNECTION_EPSILON)?,
    };
    // All streams together are so wide: what a file of the draft layers reads.
    read.only(arch::EMBEDDING_LENGTH_OUT, hyper.streams * model.hidden_size)?;
    model.hyper = Some(hyper);
    Ok(model)
}

/// Attention of each layer: those with entries are rotated by a base of their own, stretched, cosines as they are.
fn attention(read: &Reader<'_>, ratios: &[usize]) -> Result<Vec<AttentionConfig>, ConfigError> {
    let window = read.dimension(arch::SLIDING_WINDOW)?;
    let theta = read.positive(arch::COMPRESS_ROPE_FREQ_BASE)?;
    read.only(arch::HEAD_COUNT_KV, 1)?;
    let mut layers = read.attention(&AttentionDefaults::INTERLEAVED)?;
    let indexer = match ratios.contains(&OVERLAPPING) {
        true => Some(IndexerConfig {
            num_heads: read.dimension(arch::INDEXER_HEAD_COUNT)?,
            head_dim: read.dimension(arch::INDEXER_KEY_LENGTH)?,
            top_k: read.dimension(arch::INDEXER_TOP_K)?,
            pairing: RopePairing::Interleaved,
            of_layer: None,
        }),
        false => {
            read.without_effect(&[arch::INDEXER_HEAD_COUNT, arch::INDEXER_KEY_LENGTH, arch::INDEXER_TOP_K]);
            None
        }
    };
    for (layer, ratio) in layers.iter_mut().zip(ratios) {
        layer.sliding_window = Some(window);
        if layer.num_key_value_heads != 1 || layer.value_head_dim != layer.head_dim {
            let found = format!("{} of {}", layer.num_key_value_heads, layer.value_head_dim);
            let wanted = format!("1 head of {}: keys are the values", layer.head_dim);
            return Err(read.wrong(arch::VALUE_LENGTH, found, wanted));
        }
        let Some(rope) = &mut layer.rope else { continue };
        match *ratio {
            0 => rope.scaling = RopeScaling::None,
            OVERLAPPING | APART => {
                rope.theta = f64::from(theta);
                if let RopeScaling::Yarn { attention_factor, .. } = &mut rope.scaling {
                    *attention_factor = 1.0;
                }
            }
            other => return Err(read.wrong(arch::COMPRESS_RATIOS, other, "0, 4 or 128 for each layer")),
        }
        if *ratio == OVERLAPPING {
            layer.indexer = indexer;
            if let Some(IndexerConfig { head_dim, .. }) = indexer.filter(|i| i.head_dim < rope.dims) {
                let wanted = format!("at least the {} elements that are rotated", rope.dims);
                return Err(read.wrong(arch::INDEXER_KEY_LENGTH, head_dim, wanted));
            }
        }
    }
    Ok(layers)
}

fn lower(l: &mut Lowering<'_>) -> Result<(), LowerError> {
    decoder::leave_out_drafts(l);
    let Some(config) = l.config.hyper else {
        return Err(LowerError::MissingTensor {
            name: of_model::OUTPUT_HC_FN.to_owned(),
            wanted: Vec::new(),
        });
    };
    let embedding = embedding::lower(l)?;
    let mut x = hyper::begin(l, embedding, &config)?;
    for i in 0..l.config.num_hidden_layers {
        let (layer, at) = (LayerIdx(i as u32), Some(LayerIdx(i as u32)));
        let MixerConfig::Compressed(compressed) = l.config.layers[i].mixer.clone() else { continue };
        let around = around_attention(i);
        let (read, gates) = hyper::enter(l, layer, x, &config, &around)?;
        let normed = norm::lower(l, at, "attn_norm", &blk(i, tensor::ATTN_NORM), read, 1)?;
        l.graph.tap(at, Stage::AttnNorm, &[normed])?;
        let out = compressed_attention::lower(l, layer, normed, &compressed)?;
        x = hyper::leave(l, layer, [x, out], gates, &config, &around)?;
        l.graph.tap(at, Stage::PostAttnResidual, &[x])?;

        let around = around_ffn(i);
        let (read, gates) = hyper::enter(l, layer, x, &config, &around)?;
        let normed = norm::lower(l, at, "ffn_norm", &blk(i, tensor::FFN_NORM), read, 1)?;
        l.graph.tap(at, Stage::FfnNorm, &[normed])?;
        let out = ffn::branch(l, layer, [normed, read, read], &FFN)?.scaled;
        x = hyper::leave(l, layer, [x, out], gates, &config, &around)?;
        l.graph.tap(at, Stage::PostFfnResidual, &[x])?;
        l.leave_out(
            blk(i, tensor::EXP_PROBS_B_VL),
            "the router's bias for tokens of images, which are not read",
        );
    }
    let x = hyper::end(l, x, &config)?;
    lm_head::lower(l, x, of_model::OUTPUT_NORM)
}

fn around_attention(layer: usize) -> HyperSpec {
    HyperSpec {
        names: ["attn_hc_norm", "attn_hc_fn", "attn_hc_gates", "attn_hc_pre", "attn_hc_post"],
        tensors: [tensor::HC_ATTN_FN, tensor::HC_ATTN_BASE, tensor::HC_ATTN_SCALE].map(|t| blk(layer, t)),
    }
}

fn around_ffn(layer: usize) -> HyperSpec {
    HyperSpec {
        names: ["ffn_hc_norm", "ffn_hc_fn", "ffn_hc_gates", "ffn_hc_pre", "ffn_hc_post"],
        tensors: [tensor::HC_FFN_FN, tensor::HC_FFN_BASE, tensor::HC_FFN_SCALE].map(|t| blk(layer, t)),
    }
}
