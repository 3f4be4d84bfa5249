//! Rotary position embedding of every head.

use crate::architectures::{LowerError, Lowering, only};
use crate::config::RopeConfig;
use crate::ir::{LayerIdx, Op, RopeSpec, ValueId};

/// Appends RoPE over `heads` heads.
///
/// # Errors
/// [`LowerError::Graph`] where the heads do not fit.
pub fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    name: &'static str,
    x: ValueId,
    heads: usize,
    config: &RopeConfig,
) -> Result<ValueId, LowerError> {
    let spec = RopeSpec { theta: config.theta, dims: config.dims, scaling: config.scaling };
    let (table, pairing) = (l.graph.add_rope_table(spec), config.pairing);
    let positions = l.graph.inputs.positions;
    Ok(only(l.graph.push(Some(layer), name, Op::Rope { table, pairing, heads }, &[x, positions])?))
}
