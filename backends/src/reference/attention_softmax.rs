//! The softmax inside attention, for looking at: 0 where the query does not see.

use super::attention::{softmax, visible};
use moe_run_graph::ir::AttentionAttrs;

/// `scores` [H, T, S], `positions` [T] → `out` [H, T, S].
pub(super) fn attention_softmax(
    scores: &[f32],
    positions: &[u32],
    attrs: &AttentionAttrs,
    sinks: Option<&[f32]>,
    cached: usize,
    out: &mut [f32],
) {
    out.fill(0.0);
    for head in 0..attrs.num_attention_heads {
        for (t, position) in positions.iter().enumerate() {
            let row = (head * positions.len() + t) * cached;
            let seen = visible(*position, attrs);
            let mut weights: Vec<f64> = seen.clone().map(|s| f64::from(scores[row + s])).collect();
            softmax(&mut weights, sinks.map(|s| s[head]));
            for (s, weight) in seen.zip(weights) {
                out[row + s] = weight as f32;
            }
        }
    }
}
