//! Some rows of a matrix.

/// `x` [T, width], `rows` [R] → `out` [R, width].
pub(super) fn get_rows(x: &[f32], rows: &[u32], width: usize, out: &mut [f32]) {
    for (out, row) in out.chunks_exact_mut(width).zip(rows) {
        out.copy_from_slice(&x[*row as usize * width..][..width]);
    }
}
