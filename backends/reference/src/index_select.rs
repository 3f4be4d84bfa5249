//! The positions that an indexer's scores choose.

use super::router::rank;

/// `scores` [T, S], `positions` [T] → `out` [T, S]: 1 at the `top_k` best positions up to each row's own, 0 elsewhere. Of `every`
/// positions only the last counts.
pub(super) fn index_select(
    scores: &[f32],
    positions: &[u32],
    (top_k, every): (usize, usize),
    cached: usize,
    out: &mut [f32],
) {
    out.fill(0.0);
    for (t, position) in positions.iter().enumerate() {
        let row = t * cached;
        let seen: Vec<f64> =
            scores[row..][..=*position as usize].iter().map(|score| f64::from(*score)).collect();
        let mut order: Vec<usize> = (0..seen.len()).filter(|p| (p + 1).is_multiple_of(every)).collect();
        order.sort_by(|a, b| rank(&seen, *a, *b));
        order.iter().take(top_k).for_each(|p| out[row + p] = 1.0);
    }
}
