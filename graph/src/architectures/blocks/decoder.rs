//! A decoder with norms in front: embedding, layers of attention and feed-forward part, lm_head.

use super::attention::AttentionSpec;
use super::ffn::FfnSpec;
use super::{attention, embedding, ffn, lm_head};
use crate::architectures::{LowerError, Lowering};
use crate::gguf::keys::blk;
use crate::ir::LayerIdx;

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
    let layers = l.config.num_hidden_layers;
    for draft in layers..layers + l.config.num_nextn_predict_layers {
        l.leave_out(blk(draft, ""), "multi-token prediction layer, used only for drafting");
    }
    let mut x = embedding::lower(l)?;
    for i in 0..layers {
        let layer = LayerIdx(i as u32);
        x = attention::lower(l, layer, x, &spec.attention)?;
        x = ffn::lower(l, layer, x, &spec.ffn)?;
    }
    lm_head::lower(l, x)
}
