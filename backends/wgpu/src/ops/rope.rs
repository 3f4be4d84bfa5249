//! Rope: the pairs of each head, turned by their position's angle.

use crate::emit::{Emitter, Extent, Grid, Rows};
use moe_run_graph::ir::{Graph, Node, RopePairing, RopeTableId};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;

pub(super) fn emit(
    e: &mut Emitter<'_>,
    node: &Node,
    table: RopeTableId,
    pairing: RopePairing,
    heads: usize,
) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let width = e.width(node, value)?;
    let (pairs, angles) = e.angles(node, table)?;
    let (x, y) = (e.at(node.inputs[0])?, e.output(value));
    let variant = e.variant("rope", &[("LANES", LANES)]);
    let params = [
        ("x", x.into()),
        ("y", y.into()),
        ("table", angles.into()),
        ("heads", (heads as u32).into()),
        ("head_dim", (width / heads as u32).into()),
        ("pairs", pairs.into()),
        ("interleaved", u32::from(pairing == RopePairing::Interleaved).into()),
    ];
    let tokens = Extent::Rows { rows: Rows::of(e.shape(value)), times: 1, over: 1 };
    e.push(variant, Grid::new(Extent::Fixed((width / 2).div_ceil(LANES)), tokens, Extent::Fixed(1)), &params);
    Ok(())
}

pub(super) fn lacking(graph: &Graph, node: &Node, heads: usize) -> Option<String> {
    let width = graph.value(node.inputs[0]).shape.width()?;
    let odd = heads == 0 || !(width / heads).is_multiple_of(2);
    odd.then(|| format!("heads of {} elements, wanted an even number", width / heads.max(1)))
}
