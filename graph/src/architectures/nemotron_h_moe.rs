//! Nemotron 3 Nano and Super: each block is one of three, mamba2, attention without positions, or experts without a gate
//! (squared ReLU), which in some models work in a narrower space; a shared expert beside them; a sigmoid router with a selection
//! bias. Draft blocks are left out.
//!
//! Definition: Hugging Face transformers, `models/nemotron_h/modeling_nemotron_h.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{
    AttentionDefaults, ConfigError, FfnConfig, MixerConfig, ModelConfig, MoeConfig, MoeDefaults, Reader,
};
use crate::gguf::keys::{arch, layer as tensor};
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "nemotron_h_moe", configure, lower: |l| decoder::lower(l, &DECODER) };

/// A block has one norm, whatever it is.
const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec { output_bias: Presence::Optional, ..AttentionSpec::PLAIN },
    ffn: FfnSpec { norm: tensor::ATTN_NORM, selection_bias: Presence::Required, ..FfnSpec::PLAIN },
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    // What the keys of RoPE say is of no use: nothing is rotated.
    read.without_effect(&[arch::ROPE_FREQ_BASE, arch::EXPERT_SHARED_COUNT]);
    let (mut attention, attends) = read.attention_where_heads(&AttentionDefaults::HALF)?;
    let scale = read.opt_factor(arch::ATTENTION_SCALE)?;
    for layer in &mut attention {
        layer.scale = scale.unwrap_or(layer.scale);
        layer.rope = None;
    }
    let routed: Vec<bool> = read.counts(arch::FEED_FORWARD_LENGTH)?.iter().map(|n| *n > 0).collect();
    let (moe, mamba2) = (experts(read)?, read.mamba2()?);
    let ffn = routed
        .iter()
        .zip(moe)
        .map(|(routed, moe)| if *routed { FfnConfig::Moe(moe) } else { FfnConfig::Absent });
    let mut model = read.model(attention, ffn.collect())?;
    for (i, layer) in model.layers.iter_mut().enumerate() {
        layer.mixer = match (routed[i], attends[i]) {
            (false, true) => MixerConfig::Attention,
            (false, false) => MixerConfig::Mamba2(mamba2.clone()),
            (true, false) => MixerConfig::Absent,
            (true, true) => {
                let wanted = format!("0 in layer {i}, which has experts");
                return Err(read.wrong(arch::HEAD_COUNT_KV, "KV heads", wanted));
            }
        };
    }
    Ok(model)
}

/// The experts of each layer: how many a token takes and how wide they are may be one number or an array.
fn experts(read: &Reader<'_>) -> Result<Vec<MoeConfig>, ConfigError> {
    let defaults = MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: true };
    let shared_width = read.count(arch::EXPERT_SHARED_FEED_FORWARD_LENGTH)?;
    let latent_size = Some(read.count(arch::MOE_LATENT_SIZE)?).filter(|n| *n > 0);
    let per_tok = read.counts(arch::EXPERT_USED_COUNT)?;
    let widths = read.counts(arch::EXPERT_FEED_FORWARD_LENGTH)?;
    let layer = |(per_tok, width): (usize, usize)| {
        // Where an array has a 0 the layer has no experts.
        let moe = read.moe_of(&defaults, per_tok.max(1), width.max(1), shared_width)?;
        Ok(MoeConfig { gated: false, latent_size, ..moe })
    };
    per_tok.into_iter().zip(widths).map(layer).collect()
}
