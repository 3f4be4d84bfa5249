//! One token against rows of the formats of [`super::codes`]: as `dot.rs`, a row at a time, since looking up codes takes
//! longer than folding sums.

use super::super::layout::TileStep;
use super::super::prefetch::{Rows, ask};
use super::codes::{self, Codes};
use half::f16;
use moe_run_graph::quant::Format;
use std::arch::x86_64::*;

/// As `dot::dot`, for the formats that have codes there; false for the others.
///
/// # Safety
/// As `dot::dot`.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn dot<const HINT: i32>(format: Format, rows: Rows, tile: TileStep<'_>, out: &mut [f32]) -> bool {
    // SAFETY: the caller's promise covers every block of every row.
    unsafe {
        match format {
            Format::Iq2Xxs => {
                super_blocks::<HINT, 66>(rows, tile, out, |b| half(b) * 0.125, |b| codes::iq2_xxs(b))
            }
            Format::Iq2Xs => {
                super_blocks::<HINT, 74>(rows, tile, out, |b| half(b) * 0.125, |b| codes::iq2_xs(b))
            }
            Format::Iq2S => {
                super_blocks::<HINT, 82>(rows, tile, out, |b| half(b) * 0.125, |b| codes::iq2_s(b))
            }
            Format::Iq3Xxs => {
                super_blocks::<HINT, 98>(rows, tile, out, |b| half(b) * 0.25, |b| codes::iq3_xxs(b))
            }
            Format::Iq3S => super_blocks::<HINT, 110>(rows, tile, out, |b| half(b), |b| codes::iq3_s(b)),
            Format::Iq1S => {
                super_blocks::<HINT, 50>(rows, tile, out, |b| half(b) * 0.125, |b| codes::iq1_s(b))
            }
            Format::Iq1M => {
                super_blocks::<HINT, 56>(rows, tile, out, |b| iq1_m_scale(b), |b| codes::iq1_m(b))
            }
            Format::Tq1_0 => {
                super_blocks::<HINT, 54>(rows, tile, out, |b| half(b.add(52)), |b| codes::tq1_0(b))
            }
            Format::Tq2_0 => {
                super_blocks::<HINT, 66>(rows, tile, out, |b| half(b.add(64)), |b| codes::tq2_0(b))
            }
            Format::Nvfp4 => nvfp4::<HINT>(rows, tile, out),
            Format::Q1_0 => small_blocks::<HINT, 18, 4>(rows, tile, out, |b| codes::q1_0(b)),
            Format::Q2_0 => small_blocks::<HINT, 18, 2>(rows, tile, out, |b| codes::q2_0(b)),
            _ => return false,
        }
    }
    true
}

/// The f16 at `at`.
///
/// # Safety
/// It is readable.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn half(at: *const u8) -> f32 {
    // SAFETY: the caller's promise.
    f16::from_bits(unsafe { at.cast::<u16>().read_unaligned() }).to_f32()
}

/// An eighth of IQ1_M's scale, which lies in the upper nibbles of four words.
///
/// # Safety
/// A block is readable.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn iq1_m_scale(block: *const u8) -> f32 {
    // SAFETY: the caller's promise.
    let words = unsafe { block.add(48).cast::<u64>().read_unaligned() };
    let nibble = |j: u32| (words >> (16 * j + 12) & 15) << (4 * j);
    f16::from_bits((nibble(0) | nibble(1) | nibble(2) | nibble(3)) as u16).to_f32() * 0.125
}

/// Σ w·q over 32 elements as eight dwords, `by` multiplying pairs of elements.
///
/// Pair sums are at most 2 · 63 · 127: no format here has codes beyond ±63.
///
/// # Safety
/// `q` has 32 elements.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn products(w: __m256i, q: *const i8, by: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    let q = unsafe { _mm256_loadu_si256(q.cast()) };
    _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w)), by)
}

/// The sum of eight dwords.
#[inline]
#[target_feature(enable = "avx2")]
fn folded(x: __m256i) -> i32 {
    let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let x = _mm_add_epi32(x, _mm_unpackhi_epi64(x, x));
    _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32::<1>(x)))
}

/// Rows of super-blocks of `BYTES` bytes: `scale` gives d, `block` the codes and the sub-blocks' scales.
///
/// # Safety
/// As [`dot`].
#[inline(always)]
unsafe fn super_blocks<const HINT: i32, const BYTES: usize>(
    rows: Rows,
    tile: TileStep<'_>,
    out: &mut [f32],
    scale: impl Fn(*const u8) -> f32,
    block: impl Fn(*const u8) -> (Codes<8>, __m256i),
) {
    let Rows { mut at, inner, asked } = rows;
    for out in out {
        let mut sum = 0.0f32;
        // SAFETY: blocks below `inner / 256` exist in the row and in the tile.
        unsafe {
            for (b, a) in tile.scale[..inner / 256].iter().enumerate() {
                ask::<HINT>(asked.ahead_of(at), BYTES);
                let q = tile.q.as_ptr().add(256 * b);
                let (codes, scales) = block(at);
                let mut ints = _mm256_setzero_si256();
                for (g, codes) in codes.into_iter().enumerate() {
                    let which = _mm256_set1_epi16(((2 * g) | (2 * g + 1) << 8) as i16);
                    let by = _mm256_shuffle_epi8(scales, which);
                    ints = _mm256_add_epi32(ints, products(codes, q.add(32 * g), by));
                }
                sum = (scale(at) * a).mul_add(folded(ints) as f32, sum);
                at = at.add(BYTES);
            }
        }
        *out = sum;
    }
}

/// Rows of blocks of `BYTES` bytes and `N` · 32 elements that begin with d.
///
/// # Safety
/// As [`dot`].
#[inline(always)]
unsafe fn small_blocks<const HINT: i32, const BYTES: usize, const N: usize>(
    rows: Rows,
    tile: TileStep<'_>,
    out: &mut [f32],
    block: impl Fn(*const u8) -> Codes<N>,
) {
    let Rows { mut at, inner, asked } = rows;
    for out in out {
        let mut sum = 0.0f32;
        // SAFETY: blocks below `inner / (32 · N)` exist in the row and in the tile.
        unsafe {
            for (b, a) in tile.scale[..inner / 32].as_chunks::<N>().0.iter().enumerate() {
                ask::<HINT>(asked.ahead_of(at), BYTES);
                let (q, d) = (tile.q.as_ptr().add(32 * N * b), half(at));
                for (g, codes) in block(at).into_iter().enumerate() {
                    let ints = products(codes, q.add(32 * g), _mm256_set1_epi16(1));
                    sum = (d * a[g]).mul_add(folded(ints) as f32, sum);
                }
                at = at.add(BYTES);
            }
        }
        *out = sum;
    }
}

/// Rows of NVFP4: sixteen elements under a scale of their own, thirty-two under one of the activations'.
///
/// # Safety
/// As [`dot`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nvfp4<const HINT: i32>(rows: Rows, tile: TileStep<'_>, out: &mut [f32]) {
    const BYTES: usize = 36;
    let Rows { mut at, inner, asked } = rows;
    for out in out {
        let mut sum = 0.0f32;
        // SAFETY: blocks below `inner / 64` exist in the row and in the tile.
        unsafe {
            for (b, a) in tile.scale[..inner / 32].as_chunks::<2>().0.iter().enumerate() {
                ask::<HINT>(asked.ahead_of(at), BYTES);
                let (q, d) = (tile.q.as_ptr().add(64 * b), codes::nvfp4_scales(at));
                let ones = _mm256_set1_epi16(1);
                let [first, second] = codes::nvfp4(at);
                let both = _mm256_hadd_epi32(products(first, q, ones), products(second, q.add(32), ones));
                let both = _mm256_hadd_epi32(both, both);
                // Sixteens 0 and 2 in the lower half, 1 and 3 in the upper.
                let (even, odd) = (_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
                let mut ints = [0i32; 4];
                _mm_storeu_si128(ints.as_mut_ptr().cast(), _mm_unpacklo_epi32(even, odd));
                for (s, ints) in ints.into_iter().enumerate() {
                    sum = (d[s] * a[s / 2]).mul_add(ints as f32, sum);
                }
                at = at.add(BYTES);
            }
        }
        *out = sum;
    }
}
