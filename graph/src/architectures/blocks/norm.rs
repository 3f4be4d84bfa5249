//! RMSNorm of a whole row or of each head.

use crate::architectures::{LowerError, Lowering, only};
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
    let op = Op::RmsNorm { weight: Some(weight), eps: l.config.rms_norm_eps, heads };
    Ok(only(l.graph.push(layer, name, op, &[x])?))
}
