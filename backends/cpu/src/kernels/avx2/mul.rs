//! The AVX2 version of panel × tile: half a panel (8 rows) and up to 4 tokens at a time, which 16 registers hold.
//! Unsigned × signed bytes go through `vpmaddubsw`, whose 16-bit pair sums cannot saturate here: u ≤ 63 and |q| ≤ 127,
//! or, where u spans the byte, |u − 128| ≤ 128 as the unsigned operand and q with its sign.

use super::super::layout::{Lanes, PANEL_ROWS, Panel, PanelLayout, TileStep, Zero};
use std::arch::x86_64::*;

/// Panel × tile for any number of tokens.
///
/// # Safety
/// The CPU has AVX2 and FMA. `tile` holds `subs` sub-blocks of `out.len()` tokens with their sums and scales, one for 256
/// elements where the layout has super-blocks and one for 32 where it has not.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn mul(layout: PanelLayout, panel: &Panel, subs: usize, tile: TileStep<'_>, out: &mut [Lanes]) {
    let tokens = out.len();
    for half in 0..2 {
        let mut t = 0;
        while t < tokens {
            // SAFETY: tokens t.. of the tile, as many as the arm says.
            unsafe {
                match tokens - t {
                    1 => part::<1>(layout, panel, half, subs, tile, t, out),
                    2 => part::<2>(layout, panel, half, subs, tile, t, out),
                    3 => part::<3>(layout, panel, half, subs, tile, t, out),
                    _ => part::<4>(layout, panel, half, subs, tile, t, out),
                }
            }
            t += 4;
        }
    }
}

/// 8 rows × `T` tokens from token `first` on.
///
/// # Safety
/// As [`mul`], and the tile has tokens `first..first + T`.
#[target_feature(enable = "avx2,fma")]
unsafe fn part<const T: usize>(
    layout: PanelLayout,
    panel: &Panel,
    half: usize,
    subs: usize,
    tile: TileStep<'_>,
    first: usize,
    out: &mut [Lanes],
) {
    let tokens = out.len();
    let groups = layout.sub_elems / 4;
    let sums = if layout.sub_elems == 16 { tile.neg_sums16 } else { tile.neg_sums32 };
    let centred = layout.zero == Zero::Shift(7);
    let ones = _mm256_set1_epi16(1);
    let mut float = [_mm256_setzero_ps(); T];
    let mut total = [_mm256_setzero_si256(); T];
    // SAFETY: offsets stay inside the panel, the tile and `out`, whose sizes the caller vouches for.
    unsafe {
        for t in 0..T {
            float[t] = _mm256_loadu_ps(out.get_unchecked(first + t).0.as_ptr().add(8 * half));
        }
        // Adds `ints` · (the panel's scale · the token's number `at`).
        let scaled = |float: __m256, by: &Lanes, at: usize, t: usize, ints: __m256i| {
            let a = _mm256_set1_ps(*tile.scale.get_unchecked(at * tokens + first + t));
            let by = _mm256_mul_ps(_mm256_load_ps(by.0.as_ptr().add(8 * half)), a);
            _mm256_fmadd_ps(by, _mm256_cvtepi32_ps(ints), float)
        };
        for s in 0..subs {
            let sum = |t: usize| *sums.get_unchecked(s * tokens + first + t);
            let mut int = [_mm256_setzero_si256(); T];
            for k4 in s * groups..(s + 1) * groups {
                let at = panel.q.as_ptr().add(k4 * 4 * PANEL_ROWS + half * 32);
                let mut weights = _mm256_load_si256(at.cast());
                let q = tile.q.as_ptr().add((k4 * tokens + first) * 4).cast::<i32>();
                if centred {
                    weights = _mm256_xor_si256(weights, _mm256_set1_epi8(i8::MIN));
                    let size = _mm256_abs_epi8(weights);
                    for t in 0..T {
                        let q = _mm256_sign_epi8(_mm256_set1_epi32(q.add(t).read_unaligned()), weights);
                        let pairs = _mm256_maddubs_epi16(size, q);
                        int[t] = _mm256_add_epi32(int[t], _mm256_madd_epi16(pairs, ones));
                    }
                } else {
                    for t in 0..T {
                        let q = _mm256_set1_epi32(q.add(t).read_unaligned());
                        let pairs = _mm256_maddubs_epi16(weights, q);
                        int[t] = _mm256_add_epi32(int[t], _mm256_madd_epi16(pairs, ones));
                    }
                }
            }
            for t in 0..T {
                if let (Zero::Shift(shift), false) = (layout.zero, centred) {
                    int[t] = _mm256_add_epi32(int[t], _mm256_set1_epi32(sum(t) << shift));
                }
                if layout.super_block {
                    let by = _mm256_load_si256(panel.sub_scale[s].0.as_ptr().add(8 * half).cast());
                    total[t] = _mm256_add_epi32(total[t], _mm256_mullo_epi32(int[t], by));
                } else {
                    if layout.zero == Zero::Min {
                        float[t] = scaled(
                            float[t],
                            &panel.min[s],
                            s * layout.sub_elems / 32,
                            t,
                            _mm256_set1_epi32(sum(t)),
                        );
                    }
                    float[t] = scaled(float[t], &panel.scale[s], s * layout.sub_elems / 32, t, int[t]);
                }
            }
        }
        for t in 0..T {
            if layout.super_block {
                if layout.zero == Zero::Min {
                    let mut minima = _mm256_setzero_si256();
                    for s in 0..subs {
                        let sum = _mm256_set1_epi32(*sums.get_unchecked(s * tokens + first + t));
                        let min = _mm256_load_si256(panel.sub_min[s].0.as_ptr().add(8 * half).cast());
                        minima = _mm256_add_epi32(minima, _mm256_mullo_epi32(sum, min));
                    }
                    float[t] = scaled(float[t], &panel.min[0], 0, t, minima);
                }
                float[t] = scaled(float[t], &panel.scale[0], 0, t, total[t]);
            }
            let to = out.get_unchecked_mut(first + t).0.as_mut_ptr().add(8 * half);
            _mm256_storeu_ps(to, float[t]);
        }
    }
}

/// The kernels of [`fma`] for 1 to 8 rows.
pub const FMA: [super::super::fma::Fma; 8] =
    [fma::<1>, fma::<2>, fma::<3>, fma::<4>, fma::<5>, fma::<6>, fma::<7>, fma::<8>];

/// `out[t][0..16] += Σ_k w[k · w_stride ..][0..16] · x[k · x_next + t · x_token]` for `T` rows and `count` values of k.
///
/// # Safety
/// The CPU has AVX2 and FMA, and every index above lies in the buffer behind its pointer.
#[target_feature(enable = "avx2,fma")]
unsafe fn fma<const T: usize>(
    count: usize,
    w: *const f32,
    w_stride: usize,
    x: *const f32,
    x_next: usize,
    x_token: usize,
    out: *mut f32,
    out_stride: usize,
) {
    for half in 0..2 {
        let mut sums = [_mm256_setzero_ps(); T];
        // SAFETY: the caller's promise.
        unsafe {
            for t in 0..T {
                sums[t] = _mm256_loadu_ps(out.add(t * out_stride + 8 * half));
            }
            for k in 0..count {
                let weights = _mm256_loadu_ps(w.add(k * w_stride + 8 * half));
                for t in 0..T {
                    let x = _mm256_set1_ps(*x.add(k * x_next + t * x_token));
                    sums[t] = _mm256_fmadd_ps(weights, x, sums[t]);
                }
            }
            for t in 0..T {
                _mm256_storeu_ps(out.add(t * out_stride + 8 * half), sums[t]);
            }
        }
    }
}
