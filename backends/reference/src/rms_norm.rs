//! x / sqrt(mean(x²) + eps) · w, head by head.

/// `x` and `out` [rows, heads · width]; each head of each row is normed by itself. `weight` is [width], the same for all, or
/// [heads · width]; without one it is 1.
pub(super) fn rms_norm(x: &[f32], width: usize, weight: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    for (head, (x, out)) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
        let mean_square = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean_square + f64::from(eps)).sqrt();
        for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
            let weight = weight.map_or(1.0, |w| f64::from(w[(head * width + i) % w.len()]));
            *out = (f64::from(*x) * scale * weight) as f32;
        }
    }
}
