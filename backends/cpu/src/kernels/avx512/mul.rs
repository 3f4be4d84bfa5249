//! Panel × tile with `vpdpbusd`: one 64-byte vector of weights (16 rows × 4 elements) meets four activation bytes
//! broadcast from memory. Two accumulators a token (integers of a sub-block, floats of a step) fill 16 registers at 8
//! tokens, which leaves room for the weights and hides the instruction's latency.

use super::super::layout::{Lanes, PANEL_ROWS, Panel, TileStep, WideLanes};
use std::arch::x86_64::*;

/// The panel's zero is `1 << SHIFT`, or, with `SHIFT == MIN`, minima.
pub const MIN: u32 = 32;

/// `out[t] += panel × tile` for `T` tokens and `subs` sub-blocks of `SUB` elements, as `mul::mul_q8` defines it. With
/// `SUPER` the panel is a super-block under one activation scale; else a sub-block is a block,
/// and each 32 elements have an activation scale.
///
/// # Safety
/// The CPU has AVX-512 F, BW, VL and VNNI. `tile` holds `subs · SUB` elements of `T` tokens with their sums and
/// scales, `out` has `T` entries.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn mul<const T: usize, const SUB: usize, const SHIFT: u32, const SUPER: bool>(
    panel: &Panel,
    subs: usize,
    tile: TileStep<'_>,
    out: *mut Lanes,
) {
    let sums = if SUB == 16 { tile.neg_sums16.as_ptr() } else { tile.neg_sums32.as_ptr() };
    let mut q = tile.q.as_ptr().cast::<i32>();
    let mut w = panel.q.as_ptr();
    let mut float = [_mm512_setzero_ps(); T];
    let mut total = [_mm512_setzero_si512(); T];
    // SAFETY: all offsets stay below the lengths that the caller vouches for.
    unsafe {
        for t in 0..T {
            float[t] = _mm512_loadu_ps(out.add(t).cast());
        }
        for s in 0..subs {
            let mut int = [_mm512_setzero_si512(); T];
            if SHIFT != MIN {
                for t in 0..T {
                    int[t] = _mm512_slli_epi32::<SHIFT>(_mm512_set1_epi32(*sums.add(s * T + t)));
                }
            }
            for _ in 0..SUB / 4 {
                let weights = _mm512_load_si512(w.cast());
                for t in 0..T {
                    let activations = _mm512_set1_epi32(q.add(t).read_unaligned());
                    int[t] = _mm512_dpbusd_epi32(int[t], weights, activations);
                }
                w = w.add(4 * PANEL_ROWS);
                q = q.add(T);
            }
            if SUPER {
                let by = _mm512_load_si512(panel.sub_scale[s].0.as_ptr().cast());
                for t in 0..T {
                    total[t] = _mm512_add_epi32(total[t], _mm512_mullo_epi32(int[t], by));
                }
            } else {
                if SHIFT == MIN {
                    float = add_scaled(float, &panel.min[s], tile.scale, s * SUB / 32, |t| {
                        _mm512_set1_epi32(*sums.add(s * T + t))
                    });
                }
                float = add_scaled(float, &panel.scale[s], tile.scale, s * SUB / 32, |t| int[t]);
            }
        }
        if SUPER {
            if SHIFT == MIN {
                let mut minima = [_mm512_setzero_si512(); T];
                for s in 0..subs {
                    let min = _mm512_load_si512(panel.sub_min[s].0.as_ptr().cast());
                    for t in 0..T {
                        let sum = _mm512_set1_epi32(*sums.add(s * T + t));
                        minima[t] = _mm512_add_epi32(minima[t], _mm512_mullo_epi32(sum, min));
                    }
                }
                float = add_scaled(float, &panel.min[0], tile.scale, 0, |t| minima[t]);
            }
            float = add_scaled(float, &panel.scale[0], tile.scale, 0, |t| total[t]);
        }
        for t in 0..T {
            _mm512_storeu_ps(out.add(t).cast(), float[t]);
        }
    }
}

/// `to[t]` + `ints(t)` · (the panel's scale · the token's), whose activation scales are those of number `at`.
///
/// # Safety
/// The CPU has AVX-512 F; the scales go that far.
#[inline(always)]
unsafe fn add_scaled<const T: usize>(
    mut to: [__m512; T],
    by: &Lanes,
    scales: &[f32],
    at: usize,
    ints: impl Fn(usize) -> __m512i,
) -> [__m512; T] {
    // SAFETY: the caller's promise.
    unsafe {
        let by = _mm512_load_ps(by.0.as_ptr());
        for t in 0..T {
            let scale = _mm512_mul_ps(by, _mm512_set1_ps(*scales.as_ptr().add(at * T + t)));
            to[t] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(ints(t)), to[t]);
        }
    }
    to
}

/// `out[t][0..16] += Σ_k w[k][0..16] · x[k][t]` in f64 for `T` tokens: tokens `0..T` of rows of `tokens` at `x`.
///
/// # Safety
/// The CPU has AVX-512 F and VL; `w` has `count` rows of 16 floats, `x` as many of `tokens`, `out` `T` of 16.
#[target_feature(enable = "avx512f,avx512vl")]
pub unsafe fn mul_wide<const T: usize>(
    count: usize,
    w: *const f32,
    x: *const f32,
    tokens: usize,
    out: *mut WideLanes,
) {
    /// Rows of `x` that are converted at once: multipliers are then broadcast from memory.
    const RUN: usize = 32;
    let mask = (1u16 << T).wrapping_sub(1) as u8;
    let mut sums = [[_mm512_setzero_pd(); 2]; T];
    let mut x_wide = [[0.0f64; 8]; RUN];
    // SAFETY: the caller's promise; a masked element is not read.
    unsafe {
        for t in 0..T {
            let from = out.add(t).cast::<f64>();
            sums[t] = [_mm512_loadu_pd(from), _mm512_loadu_pd(from.add(8))];
        }
        for first in (0..count).step_by(RUN) {
            let run = RUN.min(count - first);
            for (k, x_wide) in x_wide[..run].iter_mut().enumerate() {
                let x = _mm256_maskz_loadu_ps(mask, x.add((first + k) * tokens));
                _mm512_storeu_pd(x_wide.as_mut_ptr(), _mm512_cvtps_pd(x));
            }
            for (k, x_wide) in x_wide[..run].iter().enumerate() {
                let w = w.add((first + k) * PANEL_ROWS);
                let low = _mm512_cvtps_pd(_mm256_loadu_ps(w));
                let high = _mm512_cvtps_pd(_mm256_loadu_ps(w.add(8)));
                for t in 0..T {
                    let x = _mm512_set1_pd(x_wide[t]);
                    sums[t][0] = _mm512_fmadd_pd(low, x, sums[t][0]);
                    sums[t][1] = _mm512_fmadd_pd(high, x, sums[t][1]);
                }
            }
        }
        for t in 0..T {
            let to = out.add(t).cast::<f64>();
            _mm512_storeu_pd(to, sums[t][0]);
            _mm512_storeu_pd(to.add(8), sums[t][1]);
        }
    }
}

/// `out[t][0..16] += Σ_k w[k · w_stride ..][0..16] · x[k · x_next + t · x_token]` for `T` rows and `count` values of k.
///
/// # Safety
/// The CPU has AVX-512 F, and every index above lies in the buffer behind its pointer.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn fma<const T: usize>(
    count: usize,
    mut w: *const f32,
    w_stride: usize,
    mut x: *const f32,
    x_next: usize,
    x_token: usize,
    out: *mut f32,
    out_stride: usize,
) {
    let mut sums = [_mm512_setzero_ps(); T];
    // SAFETY: the caller's promise; the pointers are not read past the last k.
    unsafe {
        for t in 0..T {
            sums[t] = _mm512_loadu_ps(out.add(t * out_stride));
        }
        for _ in 0..count {
            let weights = _mm512_loadu_ps(w);
            for t in 0..T {
                sums[t] = _mm512_fmadd_ps(weights, _mm512_set1_ps(*x.add(t * x_token)), sums[t]);
            }
            w = w.wrapping_add(w_stride);
            x = x.wrapping_add(x_next);
        }
        for t in 0..T {
            _mm512_storeu_ps(out.add(t * out_stride), sums[t]);
        }
    }
}

/// [`fma`] for two blocks of 16 columns at once: twice the sums in flight for each multiplier that is read.
///
/// # Safety
/// As [`fma`], for `w[0]` with `out[0]` and for `w[1]` with `out[1]`, which do not overlap.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn fma_pair<const T: usize>(
    count: usize,
    mut w: [*const f32; 2],
    w_stride: usize,
    mut x: *const f32,
    x_next: usize,
    x_token: usize,
    out: [*mut f32; 2],
    out_stride: usize,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; T];
    // SAFETY: the caller's promise; the pointers are not read past the last k.
    unsafe {
        for t in 0..T {
            sums[t] =
                [_mm512_loadu_ps(out[0].add(t * out_stride)), _mm512_loadu_ps(out[1].add(t * out_stride))];
        }
        for _ in 0..count {
            let weights = [_mm512_loadu_ps(w[0]), _mm512_loadu_ps(w[1])];
            for t in 0..T {
                let x = _mm512_set1_ps(*x.add(t * x_token));
                sums[t][0] = _mm512_fmadd_ps(weights[0], x, sums[t][0]);
                sums[t][1] = _mm512_fmadd_ps(weights[1], x, sums[t][1]);
            }
            w = [w[0].wrapping_add(w_stride), w[1].wrapping_add(w_stride)];
            x = x.wrapping_add(x_next);
        }
        for t in 0..T {
            _mm512_storeu_ps(out[0].add(t * out_stride), sums[t][0]);
            _mm512_storeu_ps(out[1].add(t * out_stride), sums[t][1]);
        }
    }
}
