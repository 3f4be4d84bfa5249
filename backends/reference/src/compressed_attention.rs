//! softmax(scale · q·kᵀ)·k over the keys of a window and the entries of what lies before.

use super::attention::{Beside, Rows, softmax};
use moe_run_graph::ir::CompressedAttentionAttrs;

/// `q` [T, H·d], `keys` and `entries` [S, d] with where their rows stand [T] → `out` [T, H·d]; the mask of `beside` is of entries.
pub(super) fn compressed_attention(
    q: &[f32],
    (keys, key_rows): (&[f32], Rows<'_>),
    (entries, entry_rows): (&[f32], Rows<'_>),
    attrs: &CompressedAttentionAttrs,
    beside: Beside<'_>,
    out: &mut [f32],
) {
    let d = attrs.head_dim;
    for (t, position) in key_rows.positions.iter().enumerate() {
        let position = *position as usize;
        let near = attrs.near(position).map(|p| &keys[key_rows.slot(t, p) * d..][..d]);
        let chosen = (0..attrs.entries(position)).map(|i| attrs.entry(i)).filter(|p| beside.sees(t, *p));
        let far = chosen.map(|p| &entries[entry_rows.slot(t, p) * d..][..d]);
        let seen: Vec<&[f32]> = near.chain(far).collect();
        for head in 0..attrs.num_attention_heads {
            let at = (t * attrs.num_attention_heads + head) * d;
            let q = &q[at..][..d];
            let score =
                |k: &&[f32]| q.iter().zip(*k).fold(0.0f32, |sum, (q, k)| (q * attrs.scale).mul_add(*k, sum));
            let mut weights: Vec<f32> = seen.iter().map(score).collect();
            let factor = softmax(&mut weights, beside.sinks.map(|s| s[head]));
            for (i, out) in out[at..][..d].iter_mut().enumerate() {
                *out = weights.iter().zip(&seen).fold(0.0f32, |sum, (w, k)| w.mul_add(k[i], sum)) * factor;
            }
        }
    }
}
