//! The gated delta rule, token by token.

use moe_run_graph::ir::DeltaRuleAttrs;

/// x / √(Σx² + eps) · scale, in f64 up to the result.
fn normed(x: &[f32], eps: f32, scale: f32) -> Vec<f32> {
    let squares = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    let factor = f64::from(scale) / (squares + f64::from(eps)).sqrt();
    x.iter().map(|x| (f64::from(*x) * factor) as f32).collect()
}

/// One run of rows: `qkv` [T, 2·Hk·dk + Hv·dv], `beta` [T, Hv], `decay` [T, Hv] or [T, Hv·dk], `state` [Hv, dk, dv] of the
/// sequence → `out` [T, Hv·dv].
pub(super) fn delta_rule(
    qkv: &[f32],
    beta: &[f32],
    decay: &[f32],
    attrs: &DeltaRuleAttrs,
    first_position: usize,
    state: &mut [f32],
    out: &mut [f32],
) {
    let (heads, dk, dv) = (attrs.num_value_heads, attrs.key_head_dim, attrs.value_head_dim);
    let tokens = out.len() / (heads * dv);
    let (width, decays) = (qkv.len() / tokens, decay.len() / tokens / heads);
    if first_position == 0 {
        state.fill(0.0);
    }
    for t in 0..tokens {
        let (q, rest) = qkv[t * width..][..width].split_at(attrs.key_width());
        let (k, v) = rest.split_at(attrs.key_width());
        for head in 0..heads {
            let key_head = attrs.key_head(head) * dk..(attrs.key_head(head) + 1) * dk;
            let q = normed(&q[key_head.clone()], attrs.eps, attrs.scale);
            let k = normed(&k[key_head], attrs.eps, 1.0);
            let beta = beta[t * heads + head];
            let decay = &decay[(t * heads + head) * decays..][..decays];
            let decay = |i: usize| decay[i % decays];
            let s = &mut state[head * dk * dv..][..dk * dv];
            for j in 0..dv {
                let r = (0..dk).fold(0.0f32, |r, i| (k[i] * decay(i)).mul_add(s[i * dv + j], r));
                let delta = beta * (v[head * dv + j] - r);
                let mut sum = 0.0f32;
                for i in 0..dk {
                    let to = &mut s[i * dv + j];
                    *to = k[i].mul_add(delta, decay(i) * *to);
                    sum = q[i].mul_add(*to, sum);
                }
                out[(t * heads + head) * dv + j] = sum;
            }
        }
    }
}
