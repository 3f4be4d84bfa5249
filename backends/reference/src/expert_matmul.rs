//! Each token's rows through the experts that were chosen for it.

use super::matmul::{Matrix, Rounded};
use std::ops::Range;

/// `x` [T, in] or [T, K, in], `ids` [T, K] → `out` [T, K, rows.len()]; W [E, out_stored, in].
/// Each expert's rows are taken apart once for all tokens that chose it.
pub(super) fn expert_matmul(
    x: &Rounded,
    ids: &[u32],
    matrix: Matrix<'_>,
    experts: Range<usize>,
    rows_stored: usize,
    rows: Range<usize>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let width = rows.len();
    let per_token = ids.len() / x.rows(matrix.inner); // K where all K share the token's row, 1 where each has its own
    for expert in 0..experts.len() {
        let slots: Vec<usize> = (0..ids.len()).filter(|s| ids[*s] as usize == expert).collect();
        if slots.is_empty() {
            continue;
        }
        for (i, r) in rows.clone().enumerate() {
            let w = matrix.row((experts.start + expert) * rows_stored + r, x);
            for slot in &slots {
                let product = w.dot(x, slot / per_token, matrix.inner);
                out[slot * width + i] = product + bias.map_or(0.0, |b| b[expert * width + i]);
            }
        }
    }
}
