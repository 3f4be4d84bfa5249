//! A causal convolution of each channel by itself, whose last inputs are the sequence's state.

use super::gated_act::activate;
use moe_run_graph::ir::ActivationFn;
use moe_run_runtime::executable::StepRun;

/// `x` [T, C] of one run of rows, `weight` [C, k], `state` [C, k−1] of its sequence, oldest first → `out` [T, C].
pub(super) fn causal_conv(
    x: &[f32],
    run: &StepRun,
    weight: &[f32],
    bias: Option<&[f32]>,
    activation: Option<ActivationFn>,
    state: &mut [f32],
    out: &mut [f32],
) {
    let channels = out.len() / run.rows.len();
    let kept = state.len() / channels;
    if run.first_position == 0 {
        state.fill(0.0);
    }
    for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
        for c in 0..channels {
            let (past, w) = (&mut state[c * kept..][..kept], &weight[c * (kept + 1)..][..kept + 1]);
            let sum = past.iter().chain([&x[c]]).zip(w).fold(0.0f32, |sum, (x, w)| w.mul_add(*x, sum));
            let sum = bias.map_or(sum, |b| sum + b[c]);
            out[c] = activation.map_or(sum, |activation| activate(activation, sum));
            past.rotate_left(1);
            past[kept - 1] = x[c];
        }
    }
}
