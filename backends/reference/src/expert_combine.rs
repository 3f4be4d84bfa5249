//! Σ_k weight_k · y_k, k ascending.

/// `y` [T, K, D], `weights` [T, K] → `out` [T, D].
pub(super) fn expert_combine(y: &[f32], weights: &[f32], experts_per_tok: usize, out: &mut [f32]) {
    let tokens = weights.len() / experts_per_tok;
    let width = out.len() / tokens;
    for t in 0..tokens {
        for i in 0..width {
            let terms = (0..experts_per_tok).map(|k| {
                f64::from(weights[t * experts_per_tok + k])
                    * f64::from(y[(t * experts_per_tok + k) * width + i])
            });
            out[t * width + i] = terms.sum::<f64>() as f32;
        }
    }
}
