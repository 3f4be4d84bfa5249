//! x / sqrt(mean(x²) + eps) · w, head by head.

/// `x` and `out` [rows, heads · w.len()]; each head of each row is normed by itself.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let mean_square = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean_square + f64::from(eps)).sqrt();
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = (f64::from(*x) * scale * f64::from(*w)) as f32;
        }
    }
}
