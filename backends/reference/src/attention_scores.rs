//! The scores inside attention, for looking at: 0 where the query does not see.

use super::attention::{Rows, score, visible};
use moe_run_graph::ir::AttentionAttrs;

/// `q` [T, H·d], `keys` [S, G·d], `rows` [T] → `out` [H, T, S].
pub(super) fn attention_scores(
    q: &[f32],
    keys: &[f32],
    rows: Rows<'_>,
    attrs: &AttentionAttrs,
    cached: usize,
    out: &mut [f32],
) {
    let d = attrs.head_dim;
    let k_row = attrs.num_key_value_heads * d;
    out.fill(0.0);
    for head in 0..attrs.num_attention_heads {
        let kv_head = head / attrs.group_size();
        for (t, position) in rows.positions.iter().enumerate() {
            let q = &q[(t * attrs.num_attention_heads + head) * d..][..d];
            for s in visible(*position, attrs) {
                let k = &keys[rows.slot(t, s) * k_row + kv_head * d..][..d];
                out[(head * rows.positions.len() + t) * cached + s] = score(q, k, attrs);
            }
        }
    }
}
