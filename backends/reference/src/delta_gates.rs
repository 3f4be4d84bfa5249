//! What the gated delta rule is told by each token: how much it writes, and how much of the state stays.

use moe_run_runtime::exp::{exp, sigmoid, softplus};

/// `b` [T, H], `dt` [T, H·w], `a` [H], `dt_bias` [H·w], the decay's logarithm bounded or not → `beta` [T, H], `decay` [T, H·w].
pub(super) fn delta_gates(
    b: &[f32],
    dt: &[f32],
    a: &[f32],
    dt_bias: &[f32],
    bound: Option<f32>,
    beta: &mut [f32],
    decay: &mut [f32],
) {
    for (b, beta) in b.iter().zip(beta) {
        *beta = sigmoid(*b);
    }
    let of_head = dt_bias.len() / a.len();
    for (dt, out) in dt.chunks_exact(dt_bias.len()).zip(decay.chunks_exact_mut(dt_bias.len())) {
        for i in 0..dt.len() {
            let (a, dt) = (a[i / of_head], dt[i] + dt_bias[i]);
            out[i] = exp(match bound {
                None => a * softplus(dt),
                Some(bound) => bound * sigmoid(a * dt),
            });
        }
    }
}
