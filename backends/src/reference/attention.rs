//! softmax(scale · q·kᵀ)·v over the cached positions that a query may see.

use moe_run_graph::ir::AttentionAttrs;

/// Which cached positions a query at `position` sees: causal, and no further back than the window.
pub(super) fn visible(position: u32, attrs: &AttentionAttrs) -> std::ops::Range<usize> {
    let end = position as usize + 1;
    attrs.window.map_or(0, |w| end.saturating_sub(w))..end
}

/// scale · q·k, softly capped.
pub(super) fn score(q: &[f32], k: &[f32], attrs: &AttentionAttrs) -> f64 {
    let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
    let score = dot * f64::from(attrs.scale);
    attrs.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
}

/// exp(s − max) / Σ, the sink's logit counting in the denominator only.
pub(super) fn softmax(scores: &mut [f64], sink: Option<f32>) {
    let max = scores.iter().copied().chain(sink.map(f64::from)).fold(f64::NEG_INFINITY, f64::max);
    scores.iter_mut().for_each(|s| *s = (*s - max).exp());
    let sum: f64 = scores.iter().sum::<f64>() + sink.map_or(0.0, |s| (f64::from(s) - max).exp());
    scores.iter_mut().for_each(|s| *s /= sum);
}

/// `q` [T, H·d], `keys` [S, G·d], `values` [S, G·dv], `positions` [T] → `out` [T, H·dv].
pub(super) fn attention(
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    positions: &[u32],
    attrs: &AttentionAttrs,
    sinks: Option<&[f32]>,
    out: &mut [f32],
) {
    let (d, dv) = (attrs.head_dim, attrs.value_head_dim);
    let (k_row, v_row) = (attrs.num_key_value_heads * d, attrs.num_key_value_heads * dv);
    for (t, position) in positions.iter().enumerate() {
        let seen = visible(*position, attrs);
        for head in 0..attrs.num_attention_heads {
            let kv_head = head / attrs.group_size();
            let q = &q[(t * attrs.num_attention_heads + head) * d..][..d];
            let mut weights: Vec<f64> =
                seen.clone().map(|s| score(q, &keys[s * k_row + kv_head * d..][..d], attrs)).collect();
            softmax(&mut weights, sinks.map(|s| s[head]));
            let out = &mut out[(t * attrs.num_attention_heads + head) * dv..][..dv];
            for (i, out) in out.iter_mut().enumerate() {
                let products = weights
                    .iter()
                    .zip(seen.clone())
                    .map(|(w, s)| w * f64::from(values[s * v_row + kv_head * dv + i]));
                *out = products.sum::<f64>() as f32;
            }
        }
    }
}
