//! HyperGates: how streams meet a block, one lane a row.

use crate::emit::{Emitter, Extent, Grid, NONE, Rows};
use moe_run_graph::ir::{HyperGatesAttrs, Node};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;

/// The most streams, whose mixing stands in a lane's own memory.
const MAX_STREAMS: usize = 8;

pub(super) fn lacking(attrs: &HyperGatesAttrs) -> Option<String> {
    let HyperGatesAttrs { streams, iterations: _, eps: _, scale: _, base: _ } = *attrs;
    (streams > MAX_STREAMS).then(|| format!("{streams} streams, wanted at most {MAX_STREAMS}"))
}

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, attrs: &HyperGatesAttrs) -> Result<(), BackendError> {
    let w = e.at(node.inputs[0])?;
    let rows = Rows::of(e.shape(node.inputs[0]));
    let out = |i: usize| node.outputs.get(i).and_then(|value| e.stored(*value)).unwrap_or(NONE);
    let variant = e.variant("hyper_gates", &[("LANES", LANES), ("STREAMS", attrs.streams as u32)]);
    let params = [
        ("w", w.into()),
        ("scale", e.small(Some(attrs.scale))?.into()),
        ("base", e.small(Some(attrs.base))?.into()),
        ("pre", out(0).into()),
        ("post", out(1).into()),
        ("comb", out(2).into()),
        ("iterations", (attrs.iterations.unwrap_or(0) as u32).into()),
        ("eps", attrs.eps.into()),
        ("axis", rows.code().into()),
    ];
    let x = Extent::Rows { rows, times: 1, over: LANES };
    e.push(variant, Grid::new(x, Extent::Fixed(1), Extent::Fixed(1)), &params);
    Ok(())
}
