//! What recurrent layers do with tokens of one head or of some channels: the gated delta rule, mamba2's scan, convolutions, as
//! `moe_run_graph::ir::Op` defines their sums. As in `vector`, lanes and their order are part of each function.

use super::vector::{LANES, squares};
use moe_run_runtime::exp::{exp, exp_shifted, shift_of};

/// x / √(Σx² + eps) · scale, in f64 up to the result.
#[inline(always)]
pub fn l2_norm(x: &[f32], eps: f32, scale: f32, out: &mut [f32]) {
    let sum: f64 = squares(x).iter().sum();
    let factor = f64::from(scale) / (sum + f64::from(eps)).sqrt();
    for (x, out) in x.iter().zip(out) {
        *out = (f64::from(*x) * factor) as f32;
    }
}

/// Of each channel, whose places in `state` are `slots` values and as many weights, the mean of the values at `places` by a
/// softmax of their weights, as `moe_run_graph::ir::Op::Compress` defines it.
#[inline(always)]
pub fn window_means(state: &[f32], slots: usize, places: &[usize], out: &mut [f32]) {
    for (state, out) in state.chunks_exact(2 * slots).zip(out) {
        let (values, weights) = state.split_at(slots);
        let shift = shift_of(places.iter().map(|p| weights[*p]).fold(f32::NEG_INFINITY, f32::max));
        let (mut sum, mut total) = (0.0f32, 0.0f32);
        for p in places {
            let share = exp_shifted(weights[*p], shift);
            sum = share.mul_add(values[*p], sum);
            total += share;
        }
        *out = sum / total;
    }
}

/// What some consecutive tokens bring to columns of a head's state.
#[derive(Clone, Copy)]
pub struct DeltaTile<'a> {
    /// Of each token q (normed and scaled), k (normed), what is left of the state's rows, and k times that: `[n, 4, dk]`.
    pub vectors: &'a [f32],
    /// How much of each is written `[n]`.
    pub beta: &'a [f32],
    /// The values of the columns `[n, columns]`.
    pub v: &'a [f32],
}

impl<'a> DeltaTile<'a> {
    #[inline(always)]
    fn columns(self) -> usize {
        self.v.len() / self.beta.len()
    }

    /// A token's q, k, decay and k · decay.
    #[inline(always)]
    fn token(self, token: usize) -> [&'a [f32]; 4] {
        let dk = self.vectors.len() / (4 * self.beta.len());
        let of = &self.vectors[token * 4 * dk..(token + 1) * 4 * dk];
        [&of[..dk], &of[dk..2 * dk], &of[2 * dk..3 * dk], &of[3 * dk..]]
    }
}

/// Updates columns of a head's state by some tokens, one behind the other, and reads it behind each: `out` [n, columns]. `s`
/// begins with the first column; its rows are `stride` apart.
#[inline(always)]
pub fn delta_rule(tile: DeltaTile<'_>, s: &mut [f32], stride: usize, out: &mut [f32]) {
    let mut at = 0;
    while at + 4 * LANES <= tile.columns() {
        columns::<4>(tile, s, stride, at, out);
        at += 4 * LANES;
    }
    while at + LANES <= tile.columns() {
        columns::<1>(tile, s, stride, at, out);
        at += LANES;
    }
    for at in at..tile.columns() {
        column(tile, s, stride, at, out);
    }
}

/// [`delta_rule`] of column `at`.
#[inline(always)]
fn column(tile: DeltaTile<'_>, s: &mut [f32], stride: usize, at: usize, out: &mut [f32]) {
    for t in 0..tile.beta.len() {
        let [q, k, decay, decayed_k] = tile.token(t);
        let mut r = 0.0f32;
        for (i, k) in decayed_k.iter().enumerate() {
            r = k.mul_add(s[i * stride + at], r);
        }
        let delta = tile.beta[t] * (tile.v[t * tile.columns() + at] - r);
        let mut sum = 0.0f32;
        for i in 0..k.len() {
            let to = &mut s[i * stride + at];
            *to = k[i].mul_add(delta, decay[i] * *to);
            sum = q[i].mul_add(*to, sum);
        }
        out[t * tile.columns() + at] = sum;
    }
}

/// [`delta_rule`] of N · 16 columns from `at` on. A token's update and what the next one finds are one pass over the state.
#[inline(always)]
fn columns<const N: usize>(tile: DeltaTile<'_>, s: &mut [f32], stride: usize, at: usize, out: &mut [f32]) {
    let width = tile.columns();
    let mut found = [[0.0f32; LANES]; N];
    for (k, row) in tile.token(0)[3].iter().zip(s.chunks(stride)) {
        let (k, row) = (*k, row[at..at + N * LANES].as_chunks::<LANES>().0);
        for n in 0..N {
            for i in 0..LANES {
                found[n][i] = k.mul_add(row[n][i], found[n][i]);
            }
        }
    }
    for t in 0..tile.beta.len() {
        let beta = tile.beta[t];
        let v = tile.v[t * width + at..][..N * LANES].as_chunks::<LANES>().0;
        let mut delta = [[0.0f32; LANES]; N];
        for n in 0..N {
            for i in 0..LANES {
                delta[n][i] = beta * (v[n][i] - found[n][i]);
            }
        }
        let [q, k, decay, _] = tile.token(t);
        let out = &mut out[t * width + at..][..N * LANES];
        found = if t + 1 < tile.beta.len() {
            update::<N, true>([q, k, decay, tile.token(t + 1)[3]], delta, s, stride, at, out)
        } else {
            update::<N, false>([q, k, decay, q], delta, s, stride, at, out)
        };
    }
}

/// A token's update of N · 16 columns, what is read behind it, and, with `MORE`, what the next token's k · decay, the last
/// of the vectors q, k, decay, k · decay, finds there.
#[inline(always)]
fn update<const N: usize, const MORE: bool>(
    [q, k, decay, next]: [&[f32]; 4],
    delta: [[f32; LANES]; N],
    s: &mut [f32],
    stride: usize,
    at: usize,
    out: &mut [f32],
) -> [[f32; LANES]; N] {
    let (mut read, mut found) = ([[0.0f32; LANES]; N], [[0.0f32; LANES]; N]);
    let vectors = q.iter().zip(k).zip(decay).zip(next);
    for ((((q, k), decay), next), row) in vectors.zip(s.chunks_mut(stride)) {
        let (q, k, decay, next) = (*q, *k, *decay, *next);
        let row = row[at..at + N * LANES].as_chunks_mut::<LANES>().0;
        // By a number that is known when this is compiled, and through copies: else the sums live in memory.
        let Some(row) = row.first_chunk_mut::<N>() else { continue };
        for n in 0..N {
            let (mut new, mut sums) = (row[n], read[n]);
            for i in 0..LANES {
                new[i] = k.mul_add(delta[n][i], decay * new[i]);
            }
            for i in 0..LANES {
                sums[i] = q.mul_add(new[i], sums[i]);
            }
            read[n] = sums;
            if MORE {
                let mut sums = found[n];
                for i in 0..LANES {
                    sums[i] = next.mul_add(new[i], sums[i]);
                }
                found[n] = sums;
            }
            row[n] = new;
        }
    }
    for (out, read) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(read) {
        *out = read;
    }
    found
}

/// A token of a causal convolution over some channels: the sums of `taps` [k, channels] with `past` [k − 1, channels], oldest
/// first, and `x` [channels], and `bias`, where there is one. `x` then joins the past.
#[inline(always)]
pub fn causal_conv(taps: &[f32], bias: Option<&[f32]>, past: &mut [f32], x: &[f32], out: &mut [f32]) {
    let channels = x.len();
    let (last, kept) = (taps.len() - channels, past.len());
    out.fill(0.0);
    for (w, past) in taps.chunks_exact(channels).zip(past.chunks_exact(channels)) {
        for i in 0..channels {
            out[i] = w[i].mul_add(past[i], out[i]);
        }
    }
    let w = &taps[last..];
    for i in 0..channels {
        out[i] = w[i].mul_add(x[i], out[i]);
    }
    if let Some(bias) = bias {
        for i in 0..channels {
            out[i] += bias[i];
        }
    }
    past.copy_within(channels.., 0);
    past[kept - channels..].copy_from_slice(x);
}

/// One token's numbers of a head.
#[derive(Clone, Copy)]
pub struct ScanToken<'a> {
    /// softplus(dt).
    pub delta: f32,
    /// e^(a·δ).
    pub decay: f32,
    /// What of x goes past the state.
    pub d: f32,
    /// B `[N]`.
    pub b: &'a [f32],
    /// C `[N]`.
    pub c: &'a [f32],
}

/// One token's numbers of some channels, whose states are a row each.
#[derive(Clone, Copy)]
pub struct ScanChannels<'a> {
    /// softplus(dt) of each.
    pub delta: &'a [f32],
    /// a of each element `[channels, N]`.
    pub a: &'a [f32],
    /// What of each x goes past the state.
    pub d: &'a [f32],
    /// B `[N]`, of all channels.
    pub b: &'a [f32],
    /// C `[N]`, of all channels.
    pub c: &'a [f32],
}

/// Updates the rows of some channels, `s` [channels, N], each element under its own decay, by their `x` [channels], and reads
/// them: `out` [channels].
#[inline(always)]
pub fn scan_channels(token: ScanChannels<'_>, x: &[f32], s: &mut [f32], out: &mut [f32]) {
    let size = token.b.len();
    let (b, b_rest) = token.b.as_chunks::<LANES>();
    let (c, c_rest) = token.c[..size].as_chunks::<LANES>();
    let channels = x.iter().zip(token.delta).zip(token.d).zip(token.a.chunks_exact(size));
    for (((((x, delta), d), a), s), out) in channels.zip(s.chunks_exact_mut(size)).zip(out) {
        let x_delta = delta * x;
        let mut sums = [0.0f32; LANES];
        let ((a, a_rest), (s, s_rest)) = (a.as_chunks::<LANES>(), s.as_chunks_mut::<LANES>());
        for (((s, a), b), c) in s.iter_mut().zip(a).zip(b).zip(c) {
            for i in 0..LANES {
                s[i] = x_delta.mul_add(b[i], exp(a[i] * delta) * s[i]);
                sums[i] = s[i].mul_add(c[i], sums[i]);
            }
        }
        for i in 0..s_rest.len() {
            s_rest[i] = x_delta.mul_add(b_rest[i], exp(a_rest[i] * delta) * s_rest[i]);
            sums[i] = s_rest[i].mul_add(c_rest[i], sums[i]);
        }
        *out = d.mul_add(*x, halves(sums));
    }
}

/// The sum of the lanes, by halves.
#[inline(always)]
fn halves(mut sums: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// Updates rows of a head's state, `s` [rows, N], by their `x` [rows], and reads them: `out` [rows].
#[inline(always)]
pub fn ssm_scan(token: ScanToken<'_>, x: &[f32], s: &mut [f32], out: &mut [f32]) {
    let size = token.b.len();
    let (b, b_rest) = token.b.as_chunks::<LANES>();
    let (c, c_rest) = token.c[..size].as_chunks::<LANES>();
    for ((x, s), out) in x.iter().zip(s.chunks_exact_mut(size)).zip(out) {
        let x_delta = token.delta * x;
        let mut sums = [0.0f32; LANES];
        let (s, s_rest) = s.as_chunks_mut::<LANES>();
        for ((s, b), c) in s.iter_mut().zip(b).zip(c) {
            for i in 0..LANES {
                s[i] = x_delta.mul_add(b[i], token.decay * s[i]);
                sums[i] = s[i].mul_add(c[i], sums[i]);
            }
        }
        for i in 0..s_rest.len() {
            s_rest[i] = x_delta.mul_add(b_rest[i], token.decay * s_rest[i]);
            sums[i] = s_rest[i].mul_add(c_rest[i], sums[i]);
        }
        *out = token.d.mul_add(*x, halves(sums));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kernels;
    use super::super::dispatch::Isa;
    use super::*;

    /// Every instruction set of this machine gives the plain functions' bits.
    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let number = |i: usize| ((i * 2_654_435_761) % 1009) as f32 / 504.5 - 1.0;
        let numbers = |from: usize, n: usize| (from..from + n).map(number).collect::<Vec<f32>>();
        for isa in Isa::ALL {
            let Some(kernels) = Kernels::with(*isa) else { continue };
            for (dk, dv, n) in [(16, 16, 1), (128, 128, 8), (20, 83, 3), (1, 1, 2), (64, 15, 8)] {
                let (vectors, beta, v) = (numbers(1, n * 4 * dk), numbers(99, n), numbers(5, n * dv));
                let tile = DeltaTile { vectors: &vectors, beta: &beta, v: &v };
                let (mut s, mut plain_s) = (numbers(3, dk * dv), numbers(3, dk * dv));
                let (mut out, mut plain) = (vec![0.0; n * dv], vec![0.0; n * dv]);
                kernels.delta_rule(tile, &mut s, dv, &mut out);
                for at in 0..dv {
                    column(tile, &mut plain_s, dv, at, &mut plain);
                }
                assert!(out == plain && s == plain_s, "{} {dk} {dv}", isa.name());
                kernels.l2_norm(&v, 1e-6, 0.5, &mut out);
                l2_norm(&v, 1e-6, 0.5, &mut plain);
                assert_eq!(out, plain, "{}", isa.name());
            }
            for (channels, taps) in [(64, 4), (20, 2), (1, 3)] {
                let (w, bias, x) = (numbers(1, taps * channels), numbers(7, channels), numbers(4, channels));
                let (mut past, mut plain_past) =
                    (numbers(3, (taps - 1) * channels), numbers(3, (taps - 1) * channels));
                let (mut out, mut plain) = (vec![0.0; channels], vec![0.0; channels]);
                kernels.causal_conv(&w, Some(&bias), &mut past, &x, &mut out);
                causal_conv(&w, Some(&bias), &mut plain_past, &x, &mut plain);
                assert!(out == plain && past == plain_past, "{} {channels} {taps}", isa.name());
            }
            for (rows, size) in [(4, 16), (64, 128), (3, 37), (1, 1)] {
                let (b, c, x) = (numbers(1, size), numbers(11, size), numbers(4, rows));
                let token = ScanToken { delta: 0.3, decay: 0.9, d: -0.4, b: &b, c: &c };
                let (mut s, mut plain_s) = (numbers(3, rows * size), numbers(3, rows * size));
                let (mut out, mut plain) = (vec![0.0; rows], vec![0.0; rows]);
                kernels.ssm_scan(token, &x, &mut s, &mut out);
                ssm_scan(token, &x, &mut plain_s, &mut plain);
                assert!(out == plain && s == plain_s, "{} {rows} {size}", isa.name());
                let (delta, a, d) = (numbers(8, rows), numbers(2, rows * size), numbers(6, rows));
                let token = ScanChannels { delta: &delta, a: &a, d: &d, b: &b, c: &c };
                kernels.scan_channels(token, &x, &mut s, &mut out);
                scan_channels(token, &x, &mut plain_s, &mut plain);
                assert!(out == plain && s == plain_s, "{} {rows} {size}, channels", isa.name());
            }
        }
    }
}
