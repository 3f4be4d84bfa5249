//! What an indexer ranks cached positions by.

use super::attention::Rows;
use moe_run_graph::ir::IndexScoresAttrs;
use moe_run_runtime::exp::relu;

/// `q` [T, H·d], `w` [T, H], `keys` [S, d], `rows` [T] → `out` [T, S], 0 behind a row's own position.
pub(super) fn index_scores(
    q: &[f32],
    w: &[f32],
    keys: &[f32],
    rows: Rows<'_>,
    attrs: &IndexScoresAttrs,
    cached: usize,
    out: &mut [f32],
) {
    let IndexScoresAttrs { num_heads, head_dim: d } = *attrs;
    out.fill(0.0);
    for (t, position) in rows.positions.iter().enumerate() {
        let (q, w) = (&q[t * num_heads * d..][..num_heads * d], &w[t * num_heads..][..num_heads]);
        for p in 0..=*position as usize {
            let k = &keys[rows.slot(t, p) * d..][..d];
            let dot = |q: &[f32]| q.iter().zip(k).fold(0.0f32, |sum, (q, k)| q.mul_add(*k, sum));
            let of_heads = w.iter().zip(q.chunks_exact(d));
            out[t * cached + p] = of_heads.fold(0.0f32, |sum, (w, q)| w.mul_add(relu(dot(q)), sum));
        }
    }
}
