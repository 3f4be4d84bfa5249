//! GatedAct: act(gate) and act(gate) · up.

use crate::emit::{Emitter, Grid, NONE, Rows};
use moe_run_graph::ir::{ActivationFn, Node};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 256;

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, activation: ActivationFn) -> Result<(), BackendError> {
    let (function, alpha, limit) = match activation {
        ActivationFn::Silu => (0u32, 1.0, 0.0),
        // Refused before: `lacking`.
        ActivationFn::GeluTanh => return Err(BackendError::mismatch(node.op.stem())),
        ActivationFn::ClampedSwiglu { alpha, limit } => (1, alpha, limit),
        ActivationFn::Sigmoid => (2, 1.0, 0.0),
    };
    let value = node.outputs[1];
    let rows = Rows::of(e.shape(value));
    let width = e.width(node, value)? * rows.each;
    let rows = Rows { each: 1, ..rows };
    let (gate, up) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?);
    let activated = e.stored(node.outputs[0]).unwrap_or(NONE);
    let y = e.output(value);
    let variant = e.variant("gated_act", &[("LANES", LANES)]);
    let params = [
        ("gate", gate.into()),
        ("up", up.into()),
        ("activated", activated.into()),
        ("y", y.into()),
        ("width", width.into()),
        ("axis", rows.code().into()),
        ("function", function.into()),
        ("alpha", alpha.into()),
        ("limit", limit.into()),
    ];
    e.push(variant, Grid::elements(rows, width, LANES), &params);
    Ok(())
}
