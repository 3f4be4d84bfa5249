//! HyperConnect: the streams behind a block, one lane an element of one.

use crate::emit::{Emitter, Extent, Grid, Rows};
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, streams: usize) -> Result<(), BackendError> {
    let width = e.width(node, node.inputs[1])?;
    let [x, y, post, comb] = [0, 1, 2, 3].map(|i| e.at(node.inputs[i]));
    let out = e.output(node.outputs[0]);
    let variant = e.variant("hyper_connect", &[("LANES", LANES)]);
    let params = [
        ("x", x?.into()),
        ("y", y?.into()),
        ("post", post?.into()),
        ("comb", comb?.into()),
        ("out", out.into()),
        ("width", width.into()),
        ("streams", (streams as u32).into()),
    ];
    let tokens = Extent::Rows { rows: Rows::of(e.shape(node.inputs[1])), times: 1, over: 1 };
    let grid = Grid::new(Extent::Fixed(width.div_ceil(LANES)), tokens, Extent::Fixed(streams as u32));
    e.push(variant, grid, &params);
    Ok(())
}
