//! Each head through a matrix of its own.

use super::matmul::{Matrix, Rounded};
use std::ops::Range;

/// The part of W [H, stored, columns] that is read.
pub(super) struct Heads {
    /// Of the tensor's.
    pub heads: Range<usize>,
    /// Of each head's.
    pub rows: Range<usize>,
    /// Rows that the tensor has of each head.
    pub rows_stored: usize,
}

impl Heads {
    fn row(&self, head: usize, row: usize) -> usize {
        (self.heads.start + head) * self.rows_stored + self.rows.start + row
    }
}

/// `x` [T, H, columns] → `out` [T, H, rows].
pub(super) fn head_matmul(x: &Rounded, matrix: Matrix<'_>, part: &Heads, out: &mut [f32]) {
    let (heads, rows) = (part.heads.len(), part.rows.len());
    for head in 0..heads {
        for row in 0..rows {
            let w = matrix.row(part.row(head, row), x);
            for (t, out) in out.chunks_exact_mut(heads * rows).enumerate() {
                out[head * rows + row] = w.dot(x, t * heads + head, matrix.inner);
            }
        }
    }
}

/// `x` [T, H, rows] → `out` [T, H, columns]: sums of rows, first to last in f64.
pub(super) fn head_matmul_transposed(x: &[f32], matrix: Matrix<'_>, part: &Heads, out: &mut [f32]) {
    let (heads, rows, columns) = (part.heads.len(), part.rows.len(), matrix.inner);
    let mut sums = vec![0.0f64; out.len()];
    let mut w = vec![0.0; columns];
    for head in 0..heads {
        for row in 0..rows {
            matrix.decode_row(part.row(head, row), &mut w);
            for (t, sums) in sums.chunks_exact_mut(heads * columns).enumerate() {
                let x = f64::from(x[(t * heads + head) * rows + row]);
                let sums = &mut sums[head * columns..][..columns];
                sums.iter_mut().zip(&w).for_each(|(sum, w)| *sum += x * f64::from(*w));
            }
        }
    }
    out.iter_mut().zip(&sums).for_each(|(out, sum)| *out = *sum as f32);
}
