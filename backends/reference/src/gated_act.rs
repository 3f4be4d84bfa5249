//! act(gate), and act(gate) · up, in a clamped SwiGLU act(gate) · (clamp(up) + 1).

use moe_run_graph::ir::ActivationFn;
use moe_run_runtime::exp::{
    clamp, clamped_silu, clamped_up, gelu_tanh, limited_silu, relu, sigmoid, silu, softplus,
};

/// `gate`, `up` → `activated`, `gated`; all of one length.
pub(super) fn gated_act(
    gate: &[f32],
    up: &[f32],
    activation: ActivationFn,
    activated: &mut [f32],
    gated: &mut [f32],
) {
    for i in 0..gate.len() {
        activated[i] = activate(activation, gate[i]);
        gated[i] = activated[i]
            * match activation {
                ActivationFn::Silu
                | ActivationFn::GeluTanh
                | ActivationFn::Sigmoid
                | ActivationFn::Relu
                | ActivationFn::Softplus => up[i],
                ActivationFn::LimitedSwiglu { limit } | ActivationFn::BoundedSwiglu { limit } => {
                    clamp(up[i], limit)
                }
                ActivationFn::ClampedSwiglu { alpha: _, limit } => clamped_up(up[i], limit),
            };
    }
}

/// act(x).
pub(super) fn activate(activation: ActivationFn, x: f32) -> f32 {
    match activation {
        ActivationFn::Silu => silu(x),
        ActivationFn::GeluTanh => gelu_tanh(x),
        ActivationFn::ClampedSwiglu { alpha, limit } => clamped_silu(x, alpha, limit),
        ActivationFn::Sigmoid => sigmoid(x),
        ActivationFn::Relu => relu(x),
        ActivationFn::Softplus => softplus(x),
        ActivationFn::LimitedSwiglu { limit } => limited_silu(x, limit),
        ActivationFn::BoundedSwiglu { limit } => clamped_silu(x, 1.0, limit),
    }
}
