//! A decoder with norms in front: embedding, layers of attention or another mixer and feed-forward part, lm_head.

use super::attention::AttentionSpec;
use super::ffn::FfnSpec;
use super::{
    attention, compressed_attention, delta_net, embedding, ffn, kda, lm_head, mamba1, mamba2, short_conv,
};
use crate::architectures::{LowerError, Lowering};
use crate::config::MixerConfig;
use crate::gguf::keys::{blk, tensor};
use crate::ir::{LayerIdx, ValueId};

/// What a decoder's layers are made of.
#[derive(Debug, Clone, Copy)]
pub struct DecoderSpec {
    /// Attention.
    pub attention: AttentionSpec,
    /// The feed-forward part, dense or experts as the layer's configuration says.
    pub ffn: FfnSpec,
}

impl DecoderSpec {
    /// Without biases, without Q/K norm, each norm under its own name.
    pub const PLAIN: DecoderSpec = DecoderSpec { attention: AttentionSpec::PLAIN, ffn: FfnSpec::PLAIN };
}

/// Appends the whole model. Layers that only predict further tokens are left out.
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower(l: &mut Lowering<'_>, spec: &DecoderSpec) -> Result<(), LowerError> {
    lower_to(l, spec, tensor::OUTPUT_NORM)
}

/// As [`lower`], with another name of the last norm's tensor; where a file lacks it, the usual one serves.
///
/// # Errors
/// As [`lower`].
pub fn lower_to(l: &mut Lowering<'_>, spec: &DecoderSpec, final_norm: &str) -> Result<(), LowerError> {
    let x = embedding::lower(l)?;
    lower_from(l, x, spec, final_norm)
}

/// Appends everything behind the embedding `x` [T, D].
///
/// # Errors
/// As [`lower`].
pub fn lower_from(
    l: &mut Lowering<'_>,
    mut x: ValueId,
    spec: &DecoderSpec,
    final_norm: &str,
) -> Result<(), LowerError> {
    leave_out_drafts(l);
    for i in 0..l.config.num_hidden_layers {
        let layer = LayerIdx(i as u32);
        let layer_input = x;
        x = match l.config.layers[i].mixer.clone() {
            MixerConfig::Absent => x,
            MixerConfig::Attention => attention::lower(l, layer, x, &spec.attention)?,
            MixerConfig::Compressed(config) => {
                let normed = super::mixer::begin(l, layer, x)?;
                let out = compressed_attention::lower(l, layer, normed, &config)?;
                super::mixer::add(l, layer, x, out)?
            }
            MixerConfig::ShortConv { kernel } => short_conv::lower(l, layer, x, kernel)?,
            MixerConfig::DeltaNet(config) => delta_net::lower(l, layer, x, &config)?,
            MixerConfig::Kda { net, decay_bound } => kda::lower(l, layer, x, &net, decay_bound)?,
            MixerConfig::Mamba1(config) => mamba1::lower(l, layer, x, &config)?,
            MixerConfig::Mamba2(config) => mamba2::lower(l, layer, x, &config)?,
        };
        x = ffn::lower(l, layer, [x, layer_input], &spec.ffn)?;
    }
    lm_head::lower(l, x, final_norm)
}

/// Leaves out the layers behind those that run, which only predict further tokens.
pub(in crate::architectures) fn leave_out_drafts(l: &mut Lowering<'_>) {
    let layers = l.config.num_hidden_layers;
    for draft in layers..layers + l.config.num_nextn_predict_layers {
        l.leave_out(blk(draft, ""), "multi-token prediction layer, used only for drafting");
    }
}
