//! A decoder with norms in front: embedding, layers of attention and feed-forward part, lm_head.

use super::attention::AttentionSpec;
use super::ffn::FfnSpec;
use super::{attention, embedding, ffn, lm_head};
use crate::architectures::{LowerError, Lowering};
use crate::gguf::keys::blk;
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
    let x = embedding::lower(l)?;
    lower_from(l, x, spec)
}

/// Appends everything behind the embedding `x` [T, D].
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower_from(l: &mut Lowering<'_>, mut x: ValueId, spec: &DecoderSpec) -> Result<(), LowerError> {
    leave_out_drafts(l);
    for i in 0..l.config.num_hidden_layers {
        let layer = LayerIdx(i as u32);
        let layer_input = x;
        x = attention::lower(l, layer, x, &spec.attention)?;
        x = ffn::lower(l, layer, [x, layer_input], &spec.ffn)?;
    }
    lm_head::lower(l, x)
}

/// Leaves out the layers behind those that run, which only predict further tokens.
pub(in crate::architectures) fn leave_out_drafts(l: &mut Lowering<'_>) {
    let layers = l.config.num_hidden_layers;
    for draft in layers..layers + l.config.num_nextn_predict_layers {
        l.leave_out(blk(draft, ""), "multi-token prediction layer, used only for drafting");
    }
}
