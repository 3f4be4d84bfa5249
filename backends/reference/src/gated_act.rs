//! act(gate), and act(gate) · up.

use moe_run_graph::ir::ActivationFn;
use moe_run_runtime::exp::silu;

/// `gate`, `up` → `activated`, `gated`; all of one length.
pub(super) fn gated_act(
    gate: &[f32],
    up: &[f32],
    activation: ActivationFn,
    activated: &mut [f32],
    gated: &mut [f32],
) {
    for i in 0..gate.len() {
        activated[i] = match activation {
            ActivationFn::Silu => silu(gate[i]),
        };
        gated[i] = activated[i] * up[i];
    }
}
