//! Rows of the embedding table, decoded exactly, times a scale where there is one.

use super::matmul::Matrix;

/// `ids` [T] → `out` [T, table.inner].
pub(super) fn embed(ids: &[u32], table: Matrix<'_>, scale: Option<f32>, out: &mut [f32]) {
    for (out, id) in out.chunks_exact_mut(table.inner).zip(ids) {
        table.decode_row(*id as usize, out);
        if let Some(scale) = scale {
            out.iter_mut().for_each(|x| *x *= scale);
        }
    }
}
