//! The elements of each head of two values, side by side.

/// `a` [rows, n], `b` [rows, m] → `out` [rows, n + m], rows being those of all heads.
pub(super) fn concat(a: &[f32], b: &[f32], (n, m): (usize, usize), out: &mut [f32]) {
    for ((a, b), out) in a.chunks_exact(n).zip(b.chunks_exact(m)).zip(out.chunks_exact_mut(n + m)) {
        out[..n].copy_from_slice(a);
        out[n..].copy_from_slice(b);
    }
}
