//! Rows of the embedding table, decoded exactly.

use super::matmul::Matrix;

/// `ids` [T] → `out` [T, table.inner].
pub(super) fn embed(ids: &[u32], table: Matrix<'_>, out: &mut [f32]) {
    for (out, id) in out.chunks_exact_mut(table.inner).zip(ids) {
        table.decode_row(*id as usize, out);
    }
}
