//! The element-wise kernels and small reductions: norms, rotations, activations, softmax, quantization.
//!
//! Each is one portable function over 16-lane arrays, always inlined and compiled once for every instruction set
//! (see `dispatch.rs`). Lanes and their order are part of the function, so every instruction set gives the same bits
//! where the machine fuses multiply and add; nothing depends on threads.

use super::layout::{Lanes, PANEL_ROWS};
use moe_run_graph::ir::RopePairing;

/// Lanes of a partial sum; the widest vector's.
const LANES: usize = 16;

/// Σ x·y in 16 interleaved partial sums, folded pairwise.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (x_chunks, x_rest) = x.as_chunks::<LANES>();
    let (y_chunks, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x_chunks.iter().zip(y_chunks) {
        for i in 0..LANES {
            sums[i] = x[i].mul_add(y[i], sums[i]);
        }
    }
    for (i, (x, y)) in x_rest.iter().zip(y_rest).enumerate() {
        sums[i] = x.mul_add(*y, sums[i]);
    }
    fold(sums)
}

#[inline(always)]
fn fold(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// x / sqrt(mean(x²) + eps) · w, for each run of `weight.len()` elements.
#[inline(always)]
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let factor = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
        for i in 0..width {
            out[i] = x[i] * factor * weight[i];
        }
    }
}

/// Rotates each head of `x` in place by one position's cosines, then sines, of as many pairs each; elements beyond
/// the pairs stay as they are.
#[inline(always)]
pub fn rope(pairing: RopePairing, head_dim: usize, cos_sin: &[f32], x: &mut [f32]) {
    let pairs = cos_sin.len() / 2;
    let (cos, sin) = cos_sin.split_at(pairs);
    for head in x.chunks_exact_mut(head_dim) {
        match pairing {
            RopePairing::Half => {
                let (a, b) = head[..2 * pairs].split_at_mut(pairs);
                for i in 0..pairs {
                    (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
                }
            }
            RopePairing::Interleaved => {
                for i in 0..pairs {
                    let (a, b) = (head[2 * i], head[2 * i + 1]);
                    (head[2 * i], head[2 * i + 1]) = (a * cos[i] - b * sin[i], b * cos[i] + a * sin[i]);
                }
            }
        }
    }
}

/// e^x: x = n·ln 2 + r with |r| ≤ ln 2 / 2, a polynomial in r, and n into the exponent. Relative error below 3e-7;
/// 0 below −87.3, infinity above 88.3, NaN for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Below, the result would be subnormal; above, the exponent would leave its field. NaN passes both.
    let clamped = if x < -87.3 { -87.3 } else { x };
    let clamped = if clamped > 88.3 { 88.3 } else { clamped };
    // Adding 1.5 · 2²³ leaves the nearest integer in the low bits, without a conversion.
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, the first exact in 12 bits: n times it has no rounding.
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.984_126_9e-4f32;
    p = p.mul_add(r, 1.388_888_9e-3);
    p = p.mul_add(r, 8.333_333e-3);
    p = p.mul_add(r, 4.166_666_6e-2);
    p = p.mul_add(r, 0.166_666_67);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let y = p * f32::from_bits(exponent << 23);
    let y = if x < -87.3 { 0.0 } else { y };
    if x > 88.3 { f32::INFINITY } else { y }
}

/// 1.5 · 2²³: a float below 2²² in size, added to this, is rounded to the nearest integer, ties to even.
const ROUND: f32 = 12_582_912.0;

/// x · sigmoid(x).
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// silu(gate) · up.
#[inline(always)]
pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((gate, up), out) in gate.iter().zip(up).zip(out) {
        *out = silu(*gate) * *up;
    }
}

/// up ← silu(gate) · up, whole runs of 16.
#[inline(always)]
pub fn swiglu_in_place(gate: &[f32], up: &mut [f32]) {
    for (gate, up) in gate.as_chunks::<LANES>().0.iter().zip(up.as_chunks_mut::<LANES>().0) {
        for i in 0..LANES {
            up[i] *= silu(gate[i]);
        }
    }
}

/// x ← silu(x), whole runs of 16.
#[inline(always)]
pub fn silu_in_place(x: &mut [f32]) {
    for x in x.as_chunks_mut::<LANES>().0 {
        for x in x {
            *x = silu(*x);
        }
    }
}

/// silu(gate).
#[inline(always)]
pub fn silu_row(gate: &[f32], out: &mut [f32]) {
    for (gate, out) in gate.iter().zip(out) {
        *out = silu(*gate);
    }
}

/// The largest element; −∞ for none. NaN is passed over: it shows in the sum that follows.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut best = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            best[i] = if x[i] > best[i] { x[i] } else { best[i] };
        }
    }
    for (i, x) in rest.iter().enumerate() {
        best[i] = if *x > best[i] { *x } else { best[i] };
    }
    best.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

/// x ← e^(x − max), and the sum of that.
#[inline(always)]
pub fn exp_sum(x: &mut [f32], max: f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            x[i] = exp(x[i] - max);
            sums[i] += x[i];
        }
    }
    for (i, x) in rest.iter_mut().enumerate() {
        *x = exp(*x - max);
        sums[i] += *x;
    }
    fold(sums)
}

/// Quantizes a row to 8 bits in blocks of `block` (32 or 256) elements, as `moe_run_graph::quant::activation` defines,
/// with the negated sums over 16 and 32 elements.
#[inline(always)]
pub fn quantize(
    x: &[f32],
    block: usize,
    q: &mut [i8],
    scale: &mut [f32],
    sums16: &mut [i32],
    sums32: &mut [i32],
) {
    for ((x, q), scale) in x.chunks_exact(block).zip(q.chunks_exact_mut(block)).zip(scale) {
        // Absolute values compare like their bits; anything not finite is larger than every finite number.
        let mut largest = 0u32;
        for x in x {
            largest = largest.max(x.to_bits() & 0x7fff_ffff);
        }
        if largest >= 0x7f80_0000 || largest == 0 {
            *scale = if largest == 0 { 0.0 } else { f32::NAN };
            q.fill(0);
            continue;
        }
        let largest = f32::from_bits(largest);
        let inverse = 127.0 / largest;
        if inverse.is_infinite() {
            *scale = 0.0;
            q.fill(0);
            continue;
        }
        *scale = largest / 127.0;
        for (x, q) in x.iter().zip(q) {
            // The low byte of the sum is the rounded integer, which lies in −127..127.
            *q = (x * inverse + ROUND).to_bits() as i8;
        }
    }
    for ((q, sums16), sum32) in q.chunks_exact(32).zip(sums16.chunks_exact_mut(2)).zip(sums32) {
        for (q, sum) in q.as_chunks::<16>().0.iter().zip(sums16.iter_mut()) {
            let mut total = 0i32;
            for q in q {
                total -= i32::from(*q);
            }
            *sum = total;
        }
        *sum32 = sums16[0] + sums16[1];
    }
}

/// out[i] += factor · x[i].
#[inline(always)]
pub fn add_scaled(factor: f32, x: &[f32], out: &mut [f32]) {
    for (x, out) in x.iter().zip(out) {
        *out = factor.mul_add(*x, *out);
    }
}

/// out[i] *= factor.
#[inline(always)]
pub fn scale(factor: f32, out: &mut [f32]) {
    for out in out {
        *out *= factor;
    }
}

/// out = a + b.
#[inline(always)]
pub fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
    for ((a, b), out) in a.iter().zip(b).zip(out) {
        *out = a + b;
    }
}

/// `out[token · width] += weight[pair] · sums[slot]`, where the slot's pair is token · per_tok + k.
#[inline(always)]
pub fn combine(
    sums: &[Lanes],
    pairs: &[u32],
    weights: &[f32],
    per_tok: usize,
    width: usize,
    out: &mut [Lanes],
) {
    for (sum, pair) in sums.iter().zip(pairs) {
        let pair = *pair as usize;
        let (weight, to) = (weights[pair], &mut out[pair / per_tok * width].0);
        for i in 0..PANEL_ROWS {
            to[i] = weight.mul_add(sum.0[i], to[i]);
        }
    }
}
