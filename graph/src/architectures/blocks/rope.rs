//! Rotary position embedding of every head.

use crate::architectures::{LowerError, Lowering, only};
use crate::ir::{LayerIdx, Op, RopeSpec, ValueId};

/// Appends RoPE over `heads` heads, as the layer's configuration says.
///
/// # Errors
/// [`LowerError::Graph`] where the heads do not fit.
pub fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    name: &'static str,
    x: ValueId,
    heads: usize,
) -> Result<ValueId, LowerError> {
    let attention = &l.config.layers[layer.index()].attention;
    let pairing = attention.rope_pairing;
    let spec =
        RopeSpec { theta: attention.rope_theta, dims: attention.rope_dims, scaling: attention.rope_scaling };
    let table = l.graph.add_rope_table(spec);
    let positions = l.graph.inputs.positions;
    Ok(only(l.graph.push(Some(layer), name, Op::Rope { table, pairing, heads }, &[x, positions])?))
}
