//! The scans of mamba1 and mamba2, token by token.

use moe_run_graph::ir::{DecayOf, SsmScanAttrs};
use moe_run_runtime::exp::{exp, softplus};

/// The weights of a scan, a number a head; of a one a head or an element.
pub(super) struct Heads<'a> {
    pub a: &'a [f32],
    pub d: &'a [f32],
    pub dt_bias: &'a [f32],
}

/// Lanes that a sum over N is taken in.
const LANES: usize = 16;

/// One run of rows: `xbc` [T, n·P + 2·G·N], `dt` [T, n], `state` [n, P, N] of the sequence → `out` [T, n·P].
pub(super) fn ssm_scan(
    xbc: &[f32],
    dt: &[f32],
    attrs: &SsmScanAttrs,
    weights: &Heads<'_>,
    first_position: usize,
    state: &mut [f32],
    out: &mut [f32],
) {
    let (heads, rows, size) = (attrs.num_heads, attrs.head_dim, attrs.state_size);
    let tokens = dt.len() / heads;
    let width = xbc.len() / tokens;
    if first_position == 0 {
        state.fill(0.0);
    }
    for t in 0..tokens {
        let (x, rest) = xbc[t * width..][..width].split_at(attrs.x_width());
        let (b, c) = rest.split_at(attrs.group_width());
        for head in 0..heads {
            let group = attrs.group(head) * size..(attrs.group(head) + 1) * size;
            let (b, c) = (&b[group.clone()], &c[group]);
            let delta = softplus(dt[t * heads + head] + weights.dt_bias[head]);
            let decay = |i: usize| match attrs.decay_of {
                DecayOf::Head => exp(weights.a[head] * delta),
                DecayOf::Element => exp(weights.a[head * size + i] * delta),
            };
            for p in 0..rows {
                let x = x[head * rows + p];
                let s = &mut state[(head * rows + p) * size..][..size];
                let mut sums = [0.0f32; LANES];
                for i in 0..size {
                    s[i] = (delta * x).mul_add(b[i], decay(i) * s[i]);
                    sums[i % LANES] = s[i].mul_add(c[i], sums[i % LANES]);
                }
                let mut half = LANES / 2;
                while half > 0 {
                    for i in 0..half {
                        sums[i] += sums[i + half];
                    }
                    half /= 2;
                }
                out[(t * heads + head) * rows + p] = weights.d[head].mul_add(x, sums[0]);
            }
        }
    }
}
