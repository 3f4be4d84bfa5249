//! The softmax inside attention, for looking at: 0 where the query does not see.

use super::attention::{Beside, softmax, visible};
use moe_run_graph::ir::AttentionAttrs;

/// `scores` [H, T, S], `positions` [T] → `out` [H, T, S].
pub(super) fn attention_softmax(
    scores: &[f32],
    positions: &[u32],
    attrs: &AttentionAttrs,
    beside: Beside<'_>,
    cached: usize,
    out: &mut [f32],
) {
    out.fill(0.0);
    for head in 0..attrs.num_attention_heads {
        for (t, position) in positions.iter().enumerate() {
            let row = (head * positions.len() + t) * cached;
            let seen = visible(*position, attrs);
            let out = &mut out[row..][seen.clone()];
            for (out, p) in out.iter_mut().zip(seen) {
                *out = if beside.sees(t, p) { scores[row + p] } else { f32::NEG_INFINITY };
            }
            let factor = softmax(out, beside.sinks.map(|s| s[head]));
            out.iter_mut().for_each(|p| *p *= factor);
        }
    }
}
