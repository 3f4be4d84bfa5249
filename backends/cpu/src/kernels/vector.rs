//! The element-wise kernels and small reductions: norms, rotations, activations, softmax, quantization.
//!
//! Each is one portable function over 16-lane arrays, always inlined and compiled once for every instruction set
//! (see `dispatch.rs`). Lanes and their order are part of the function, so every instruction set gives the same bits
//! where the machine fuses multiply and add; nothing depends on threads.

use super::layout::{Lanes, PANEL_ROWS, WideLanes};
use moe_run_graph::ir::{PointwiseFn, RopePairing};
use moe_run_runtime::exp::{
    ROUND, clamp, clamped_silu, clamped_up, exp_shifted, gelu_tanh, limited_silu, relu, relu_squared,
    sigmoid, silu, soft_cap, softplus,
};

/// Lanes of a partial sum; the widest vector's.
pub const LANES: usize = 16;

/// x / sqrt(mean(x²) + eps) · w, for each run of `weight.len()` elements; in f64 up to the result.
#[inline(always)]
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let factor = 1.0 / (fold(squares(x)) / width as f64 + f64::from(eps)).sqrt();
        for i in 0..width {
            out[i] = (f64::from(x[i]) * factor * f64::from(weight[i])) as f32;
        }
    }
}

/// Σx² in f64, a partial sum a lane.
#[inline(always)]
pub fn squares(x: &[f32]) -> [f64; LANES] {
    let mut sums = [0.0f64; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            sums[i] += f64::from(x[i]) * f64::from(x[i]);
        }
    }
    for (i, x) in rest.iter().enumerate() {
        sums[i] += f64::from(*x) * f64::from(*x);
    }
    sums
}

#[inline(always)]
fn fold(mut sums: [f64; LANES]) -> f64 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// `out[token][row] += Σ_k w[k][row] · x[k][token]` in f64, k ascending.
#[inline(always)]
pub fn mul_wide(w: &[Lanes], x: &[f32], out: &mut [WideLanes]) {
    let tokens = out.len();
    for (i, out) in out.chunks_mut(4).enumerate() {
        let x = &x[4 * i..];
        match out {
            [_] => mul_wide_some::<1>(w, x, tokens, out),
            [_, _] => mul_wide_some::<2>(w, x, tokens, out),
            [_, _, _] => mul_wide_some::<3>(w, x, tokens, out),
            _ => mul_wide_some::<4>(w, x, tokens, out),
        }
    }
}

/// [`mul_wide`] for the first `T` tokens of `tokens`.
#[inline(always)]
fn mul_wide_some<const T: usize>(w: &[Lanes], x: &[f32], tokens: usize, out: &mut [WideLanes]) {
    let mut sums = [[0.0f64; PANEL_ROWS]; T];
    for t in 0..T {
        sums[t] = out[t].0;
    }
    for (w, x) in w.iter().zip(x.chunks(tokens)) {
        for t in 0..T {
            let x = f64::from(x[t]);
            for r in 0..PANEL_ROWS {
                sums[t][r] = f64::from(w.0[r]).mul_add(x, sums[t][r]);
            }
        }
    }
    for t in 0..T {
        out[t].0 = sums[t];
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

/// GELU by its tanh form.
#[inline(always)]
pub fn gelu_tanh_row(gate: &[f32], out: &mut [f32]) {
    for (gate, out) in gate.iter().zip(out) {
        *out = gelu_tanh(*gate);
    }
}

/// gelu(gate) · up.
#[inline(always)]
pub fn geglu_tanh(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((gate, up), out) in gate.iter().zip(up).zip(out) {
        *out = gelu_tanh(*gate) * *up;
    }
}

/// max(gate, 0).
#[inline(always)]
pub fn relu_row(gate: &[f32], out: &mut [f32]) {
    gate.iter().zip(out).for_each(|(gate, out)| *out = relu(*gate));
}

/// max(gate, 0) · up.
#[inline(always)]
pub fn reglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    gate.iter().zip(up).zip(out).for_each(|((gate, up), out)| *out = relu(*gate) * *up);
}

/// ln(1 + e^gate).
#[inline(always)]
pub fn softplus_row(gate: &[f32], out: &mut [f32]) {
    gate.iter().zip(out).for_each(|(gate, out)| *out = softplus(*gate));
}

/// ln(1 + e^gate) · up.
#[inline(always)]
pub fn softplus_gate(gate: &[f32], up: &[f32], out: &mut [f32]) {
    gate.iter().zip(up).zip(out).for_each(|((gate, up), out)| *out = softplus(*gate) * *up);
}

/// The gate of a SwiGLU with a limit.
#[inline(always)]
pub fn limited_silu_row(limit: f32, gate: &[f32], out: &mut [f32]) {
    gate.iter().zip(out).for_each(|(gate, out)| *out = limited_silu(*gate, limit));
}

/// A SwiGLU with a limit.
#[inline(always)]
pub fn limited_swiglu(limit: f32, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let each = gate.iter().zip(up).zip(out);
    each.for_each(|((gate, up), out)| *out = limited_silu(*gate, limit) * clamp(*up, limit));
}

/// A SwiGLU with a limit in front of its silu.
#[inline(always)]
pub fn bounded_swiglu(limit: f32, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let each = gate.iter().zip(up).zip(out);
    each.for_each(|((gate, up), out)| *out = clamped_silu(*gate, 1.0, limit) * clamp(*up, limit));
}

/// (x − mean) / sqrt(var + eps) · w + b, for each run of `weight.len()` elements; in f64 up to the result. An empty b is 0.
#[inline(always)]
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean = sum_of(x, |v| v) / width as f64;
        let variance = sum_of(x, |v| (v - mean) * (v - mean)) / width as f64;
        let factor = 1.0 / (variance + f64::from(eps)).sqrt();
        for i in 0..width {
            let bias = bias.get(i).map_or(0.0, |b| f64::from(*b));
            out[i] = ((f64::from(x[i]) - mean) * factor * f64::from(weight[i]) + bias) as f32;
        }
    }
}

/// Σ f(x) in f64.
#[inline(always)]
fn sum_of(x: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            sums[i] += f(f64::from(x[i]));
        }
    }
    for (i, x) in rest.iter().enumerate() {
        sums[i] += f(f64::from(*x));
    }
    fold(sums)
}

/// A function of each element.
#[inline(always)]
pub fn pointwise(function: PointwiseFn, x: &[f32], out: &mut [f32]) {
    let each = x.iter().zip(out);
    match function {
        PointwiseFn::Scale(factor) => each.for_each(|(x, out)| *out = factor * x),
        PointwiseFn::SoftCap(cap) => each.for_each(|(x, out)| *out = soft_cap(*x, cap)),
        PointwiseFn::Clamp(limit) => each.for_each(|(x, out)| *out = clamp(*x, limit)),
        PointwiseFn::ReluSquared => each.for_each(|(x, out)| *out = relu_squared(*x)),
    }
}

/// The gate of a clamped SwiGLU.
#[inline(always)]
pub fn clamped_silu_row(alpha: f32, limit: f32, gate: &[f32], out: &mut [f32]) {
    for (gate, out) in gate.iter().zip(out) {
        *out = clamped_silu(*gate, alpha, limit);
    }
}

/// A clamped SwiGLU.
#[inline(always)]
pub fn clamped_swiglu(alpha: f32, limit: f32, gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((gate, up), out) in gate.iter().zip(up).zip(out) {
        *out = clamped_silu(*gate, alpha, limit) * clamped_up(*up, limit);
    }
}

/// sigmoid(gate).
#[inline(always)]
pub fn sigmoid_row(gate: &[f32], out: &mut [f32]) {
    for (gate, out) in gate.iter().zip(out) {
        *out = sigmoid(*gate);
    }
}

/// sigmoid(gate) · up.
#[inline(always)]
pub fn sigmoid_gate(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((gate, up), out) in gate.iter().zip(up).zip(out) {
        *out = sigmoid(*gate) * *up;
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

/// What an indexer makes of its heads' products with a panel of keys: their positive parts by their weights, in order.
#[inline(always)]
pub fn weigh_heads(w: &[f32], sums: &[Lanes]) -> Lanes {
    let mut out = Lanes([0.0; PANEL_ROWS]);
    for (w, sums) in w.iter().zip(sums) {
        for i in 0..PANEL_ROWS {
            out.0[i] = w.mul_add(relu(sums.0[i]), out.0[i]);
        }
    }
    out
}

/// x ← e^x · 2^−shift, and the sum of that.
#[inline(always)]
pub fn exp_sum(x: &mut [f32], shift: f32) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            x[i] = exp_shifted(x[i], shift);
        }
        for i in 0..LANES {
            sums[i] += f64::from(x[i]);
        }
    }
    for (i, x) in rest.iter_mut().enumerate() {
        *x = exp_shifted(*x, shift);
        sums[i] += f64::from(*x);
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

/// out[i] += factor · x[i], in f64.
#[inline(always)]
pub fn add_scaled_wide(factor: f32, x: &[f32], out: &mut [f64]) {
    for (x, out) in x.iter().zip(out) {
        *out += f64::from(factor) * f64::from(*x);
    }
}

/// out[i] = x[i], rounded.
#[inline(always)]
pub fn narrow(x: &[f64], out: &mut [f32]) {
    for (x, out) in x.iter().zip(out) {
        *out = *x as f32;
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

/// `out[token · width] += weight[pair] · sums[slot]` in f64, where the slot's pair is token · per_tok + k.
#[inline(always)]
pub fn combine(
    sums: &[Lanes],
    pairs: &[u32],
    weights: &[f32],
    per_tok: usize,
    width: usize,
    out: &mut [WideLanes],
) {
    for (sum, pair) in sums.iter().zip(pairs) {
        let pair = *pair as usize;
        let (weight, to) = (f64::from(weights[pair]), &mut out[pair / per_tok * width].0);
        for i in 0..PANEL_ROWS {
            to[i] += weight * f64::from(sum.0[i]);
        }
    }
}
