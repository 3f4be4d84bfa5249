//! IndexSelect: the positions that an indexer's scores choose, one workgroup a token.

use crate::emit::{Axis, Emitter, Extent, Grid, Rows};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

const LANES: u32 = 256;

pub(super) fn lacking(top_k: usize, every: usize) -> Option<String> {
    let large = u32::try_from(top_k.max(every)).is_err();
    large.then(|| format!("{top_k} positions, of every {every}, wanted at most {}", u32::MAX))
}

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, top_k: usize, every: usize) -> Result<(), BackendError> {
    let (x, positions) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?);
    let y = e.output(node.outputs[0]);
    let variant = e.variant("index_select", &[("LANES", LANES)]);
    let params = [
        ("x", x.into()),
        ("positions", positions.into()),
        ("y", y.into()),
        ("top_k", (top_k as u32).into()),
        ("every", (every as u32).into()),
    ];
    let tokens = Extent::Rows { rows: Rows { axis: Axis::Tokens, each: 1 }, times: 1, over: 1 };
    e.push(variant, Grid::new(tokens, Extent::Fixed(1), Extent::Fixed(1)), &params);
    Ok(())
}
