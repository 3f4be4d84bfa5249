//! act(gate), and act(gate) · up.

use moe_run_graph::ir::Activation;

/// `gate`, `up` → `activated`, `gated`; all of one length.
pub(super) fn gated_act(
    gate: &[f32],
    up: &[f32],
    activation: Activation,
    activated: &mut [f32],
    gated: &mut [f32],
) {
    for i in 0..gate.len() {
        let g = f64::from(gate[i]);
        let a = match activation {
            Activation::Silu => g / (1.0 + (-g).exp()),
        };
        activated[i] = a as f32;
        gated[i] = (a * f64::from(up[i])) as f32;
    }
}
