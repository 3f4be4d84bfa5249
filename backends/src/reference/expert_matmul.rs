//! Each token's rows through the experts that were chosen for it.

use super::matmul::{Matrix, dot};
use std::ops::Range;

/// `x` [T, in] or [T, K, in] (already rounded), `ids` [T, K] → `out` [T, K, rows.len()]; W [E, out_stored, in].
/// Each expert's rows are decoded once for all tokens that chose it.
pub(super) fn expert_matmul(
    x: &[f32],
    ids: &[u32],
    matrix: Matrix<'_>,
    experts: Range<usize>,
    rows_stored: usize,
    rows: Range<usize>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let width = rows.len();
    let x_rows = x.len() / matrix.inner;
    let per_token = ids.len() / x_rows; // K where all K share the token's row, 1 where each has its own
    for expert in 0..experts.len() {
        let slots: Vec<usize> = (0..ids.len()).filter(|s| ids[*s] as usize == expert).collect();
        if slots.is_empty() {
            continue;
        }
        let first = (experts.start + expert) * rows_stored;
        matrix.for_rows(first + rows.start..first + rows.end, |r, w| {
            let row = r - first - rows.start;
            for slot in &slots {
                let x = &x[slot / per_token * matrix.inner..][..matrix.inner];
                out[slot * width + row] = dot(w, x) + bias.map_or(0.0, |b| b[expert * width + row]);
            }
        });
    }
}
