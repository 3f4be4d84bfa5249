//! Each head times its factor.

/// `x` and `out` [T, H, d], `factors` [T, H].
pub(super) fn mul_heads(x: &[f32], factors: &[f32], out: &mut [f32]) {
    let width = x.len() / factors.len().max(1);
    let heads = x.chunks_exact(width.max(1)).zip(out.chunks_exact_mut(width.max(1)));
    for ((x, out), factor) in heads.zip(factors) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = x * factor);
    }
}
