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
            let out = &mut out[row..][seen.clone()];
            out.copy_from_slice(&scores[row..][seen]);
            let factor = softmax(out, sinks.map(|s| s[head]));
            out.iter_mut().for_each(|p| *p *= factor);
        }
    }
}
