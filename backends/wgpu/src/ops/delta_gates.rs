//! DeltaGates: what the gated delta rule is told by each token.

use crate::emit::{Emitter, Grid, Rows};
use moe_run_graph::ir::{Node, WeightId};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 256;

pub(super) fn emit(
    e: &mut Emitter<'_>,
    node: &Node,
    a: WeightId,
    dt_bias: WeightId,
    bound: Option<f32>,
) -> Result<(), BackendError> {
    let (heads, width) = (e.width(node, node.inputs[0])?, e.width(node, node.inputs[1])?);
    let rows = Rows::of(e.shape(node.outputs[1]));
    let (b, dt) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?);
    let (beta, decay) = (e.output(node.outputs[0]), e.output(node.outputs[1]));
    let params = [
        ("b", b.into()),
        ("dt", dt.into()),
        ("a", e.small(Some(a))?.into()),
        ("dt_bias", e.small(Some(dt_bias))?.into()),
        ("beta", beta.into()),
        ("decay", decay.into()),
        ("heads", heads.into()),
        ("of_head", (width / heads.max(1)).into()),
        // 0: none.
        ("bound", bound.unwrap_or(0.0).into()),
    ];
    e.push(e.variant("delta_gates", &[("LANES", LANES)]), Grid::elements(rows, width, LANES), &params);
    Ok(())
}
