//! (x − mean) / sqrt(var + eps) · w (+ b), row by row.

/// `x` and `out` [rows, w.len()].
pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let width = x.len() as f64;
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / width;
        let variance = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / width;
        let scale = 1.0 / (variance + f64::from(eps)).sqrt();
        for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
            let normed = (f64::from(*x) - mean) * scale * f64::from(weight[i]);
            *out = (normed + bias.map_or(0.0, |b| f64::from(b[i]))) as f32;
        }
    }
}
