//! PositionScale: rows times a factor of their position.

use crate::emit::{Emitter, Grid, Rows};
use moe_run_graph::ir::{Node, PositionScaleAttrs};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 256;

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, attrs: &PositionScaleAttrs) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let rows = Rows::of(e.shape(value));
    let width = e.width(node, value)? * rows.each;
    let rows = Rows { each: 1, ..rows };
    let (x, positions, y) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?, e.output(value));
    let params = [
        ("x", x.into()),
        ("y", y.into()),
        ("positions", positions.into()),
        ("width", width.into()),
        ("axis", rows.code().into()),
        ("length", (attrs.length as u32).into()),
        ("offset", (attrs.offset as u32).into()),
        ("scale", attrs.scale.into()),
    ];
    e.push(e.variant("position_scale", &[("LANES", LANES)]), Grid::elements(rows, width, LANES), &params);
    Ok(())
}

pub(super) fn lacking(attrs: &PositionScaleAttrs) -> Option<String> {
    let PositionScaleAttrs { scale: _, length, offset } = *attrs;
    let fits = [length, offset].iter().all(|n| u32::try_from(*n).is_ok_and(|n| n < 1 << 31));
    (!fits).then(|| format!("positions in steps of {length} from {offset} on, wanted less than 2^31"))
}
