//! Compress: what windows of positions come to, one lane a channel.

use crate::emit::{Emitter, Extent, Grid, StateBinding};
use moe_run_graph::ir::{CompressAttrs, Node};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;

pub(super) fn lacking(attrs: &CompressAttrs) -> Option<String> {
    let CompressAttrs { ratio, overlap: _, bias: _, state: _ } = *attrs;
    u32::try_from(6 * ratio).is_err().then(|| format!("windows of {ratio} positions, wanted fewer"))
}

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, attrs: &CompressAttrs) -> Result<(), BackendError> {
    let width = e.width(node, node.outputs[0])?;
    let [a, b, positions] = [0, 1, 2].map(|i| e.at(node.inputs[i]));
    let y = e.output(node.outputs[0]);
    let variant = e.variant("compress", &[("LANES", LANES)]);
    let params = [
        ("a", a?.into()),
        ("b", b?.into()),
        ("positions", positions?.into()),
        ("bias", e.small(Some(attrs.bias))?.into()),
        ("y", y.into()),
        ("width", width.into()),
        ("ratio", (attrs.ratio as u32).into()),
        ("overlap", u32::from(attrs.overlap).into()),
    ];
    let one = Extent::Fixed(1);
    e.push(variant, Grid::new(Extent::Fixed(width.div_ceil(LANES)), one, one), &params);
    if let Some(dispatch) = e.last() {
        dispatch.state = StateBinding::Update(vec![attrs.state]);
    }
    Ok(())
}
