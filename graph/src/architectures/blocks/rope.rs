//! Rotary position embedding of every head.

use crate::architectures::{LowerError, Lowering, only};
use crate::ir::{LayerIdx, Op, RopePairing, RopeTableId, ValueId};

/// Appends RoPE over `heads` heads by a table of the graph.
///
/// # Errors
/// [`LowerError::Graph`] where the heads do not fit.
pub fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    name: &'static str,
    x: ValueId,
    heads: usize,
    table: RopeTableId,
    pairing: RopePairing,
) -> Result<ValueId, LowerError> {
    let positions = l.graph.inputs.positions;
    Ok(only(l.graph.push(Some(layer), name, Op::Rope { table, pairing, heads }, &[x, positions])?))
}
