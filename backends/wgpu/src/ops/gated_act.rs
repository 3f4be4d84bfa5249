//! GatedAct: act(gate) and act(gate) · up.

use crate::emit::{Emitter, Grid, NONE, Rows};
use crate::params::Param;
use moe_run_graph::ir::{ActivationFn, Node};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 256;

/// The function as `common/activate.wgsl` numbers it, with its alpha and limit.
pub(crate) fn activation_params(activation: Option<ActivationFn>) -> [(&'static str, Param); 3] {
    let (code, alpha, limit) = match activation {
        None => (0u32, 1.0, 0.0),
        Some(ActivationFn::Silu) => (1, 1.0, 0.0),
        Some(ActivationFn::ClampedSwiglu { alpha, limit }) => (2, alpha, limit),
        Some(ActivationFn::Sigmoid) => (3, 1.0, 0.0),
        Some(ActivationFn::GeluTanh) => (4, 1.0, 0.0),
        Some(ActivationFn::Relu) => (5, 1.0, 0.0),
        Some(ActivationFn::Softplus) => (6, 1.0, 0.0),
        Some(ActivationFn::LimitedSwiglu { limit }) => (7, 1.0, limit),
        Some(ActivationFn::BoundedSwiglu { limit }) => (8, 1.0, limit),
    };
    [("activation", code.into()), ("alpha", alpha.into()), ("limit", limit.into())]
}

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, activation: ActivationFn) -> Result<(), BackendError> {
    let value = node.outputs[1];
    let rows = Rows::of(e.shape(value));
    let width = e.width(node, value)? * rows.each;
    let rows = Rows { each: 1, ..rows };
    let (gate, up) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?);
    let activated = e.stored(node.outputs[0]).unwrap_or(NONE);
    let y = e.output(value);
    let variant = e.variant("gated_act", &[("LANES", LANES)]);
    let mut params = vec![
        ("gate", gate.into()),
        ("up", up.into()),
        ("activated", activated.into()),
        ("y", y.into()),
        ("width", width.into()),
        ("axis", rows.code().into()),
    ];
    params.extend(activation_params(Some(activation)));
    e.push(variant, Grid::elements(rows, width, LANES), &params);
    Ok(())
}
