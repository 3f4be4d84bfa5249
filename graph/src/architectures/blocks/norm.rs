//! The norm of a whole row, of the model's kind, or RMSNorm of each head.

use crate::architectures::lowering::Presence;
use crate::architectures::{LowerError, Lowering, only};
use crate::config::NormKind;
use crate::ir::{LayerIdx, Op, ValueId};

/// Appends a norm over the last axis, split into `heads`.
///
/// # Errors
/// [`LowerError`] for a missing or misshapen weight.
pub fn lower(
    l: &mut Lowering<'_>,
    layer: Option<LayerIdx>,
    name: &'static str,
    tensor: &str,
    x: ValueId,
    heads: usize,
) -> Result<ValueId, LowerError> {
    let width = l.graph.value(x).shape.width().unwrap_or(0);
    let weight = l.vector(tensor, width / heads)?;
    let biased = match l.config.norm {
        NormKind::Rms => None,
        NormKind::Layer => Some(Presence::Never),
        NormKind::LayerBiased => Some(Presence::Required),
    };
    if let Some(biased) = biased {
        let bias = l.opt_vector(&tensor.replace(".weight", ".bias"), width, biased)?;
        let op = Op::LayerNorm { weight, bias, eps: l.config.rms_norm_eps };
        return Ok(only(l.graph.push(layer, name, op, &[x])?));
    }
    let op = Op::RmsNorm { weight: Some(weight), eps: l.config.rms_norm_eps, heads };
    Ok(only(l.graph.push(layer, name, op, &[x])?))
}
