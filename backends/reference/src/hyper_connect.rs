//! x'_k = post_k·y + Σ_j comb_jk·x_j.

/// `x` [T, n·D], `y` [T, D], `post` [T, n], `comb` [T, n·n] → `out` [T, n·D].
pub(super) fn hyper_connect(
    x: &[f32],
    y: &[f32],
    post: &[f32],
    comb: &[f32],
    streams: usize,
    out: &mut [f32],
) {
    let n = streams;
    let width = y.len() * n / post.len();
    for (t, out) in out.chunks_exact_mut(n * width).enumerate() {
        let (x, y) = (&x[t * n * width..][..n * width], &y[t * width..][..width]);
        let (post, comb) = (&post[t * n..][..n], &comb[t * n * n..][..n * n]);
        for (k, out) in out.chunks_exact_mut(width).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                let terms = x.chunks_exact(width).enumerate();
                *out =
                    terms.fold(post[k].mul_add(y[i], 0.0), |sum, (j, x)| comb[j * n + k].mul_add(x[i], sum));
            }
        }
    }
}
