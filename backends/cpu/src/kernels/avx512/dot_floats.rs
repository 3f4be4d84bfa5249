//! One token against rows of plain floats: as `dot`, without anything to unpack.

use super::super::prefetch::{Asked, Rows, ask};
use super::dot::store;
use moe_run_graph::quant::Format;
use std::arch::x86_64::*;

/// `out[r] = row(first byte of row r)`, folded; four rows share the folding. Rows are `row_bytes` long.
///
/// # Safety
/// `row` may be called for each row; the CPU has what it needs.
#[inline(always)]
unsafe fn each_row(at: *const u8, row_bytes: usize, out: &mut [f32], row: impl Fn(*const u8) -> __m512) {
    for (i, out) in out.chunks_mut(4).enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [_mm512_setzero_ps(); 4];
            for (r, sum) in sums[..out.len()].iter_mut().enumerate() {
                *sum = row(at.add((4 * i + r) * row_bytes));
            }
            store(fold(sums), out);
        }
    }
}

/// The sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn fold([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
    let x = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let mut sums = [0.0; 4];
    // SAFETY: 16 bytes.
    unsafe { _mm_storeu_ps(sums.as_mut_ptr(), x) };
    sums
}

/// As `dot::dot`, for F32, F16 and BF16 against `inner` floats `x`, summed in f64 if `wide`; false for other formats.
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL and VNNI; the rows are readable, and so are `inner` elements of `x`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn dot<const HINT: i32>(
    format: Format,
    at: *const u8,
    inner: usize,
    x: *const f32,
    wide: bool,
    asked: Asked,
    out: &mut [f32],
) -> bool {
    let rows = Rows { at, inner, asked };
    // SAFETY: the caller's promise; a masked element is not read.
    unsafe {
        match (format, wide) {
            (Format::F32, false) => {
                floats::<HINT, 4>(rows, x, out, |at, mask| _mm512_maskz_loadu_ps(mask, at.cast()))
            }
            (Format::F16, false) => floats::<HINT, 2>(rows, x, out, |at, mask| {
                _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at.cast()))
            }),
            (Format::Bf16, false) => floats::<HINT, 2>(rows, x, out, |at, mask| {
                let wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }),
            (Format::F32, true) => {
                doubles::<HINT, 4>(rows, x, out, |at, mask| _mm256_maskz_loadu_ps(mask, at.cast()))
            }
            (Format::F16, true) => doubles::<HINT, 2>(rows, x, out, |at, mask| {
                _mm256_cvtph_ps(_mm_maskz_loadu_epi16(mask, at.cast()))
            }),
            (Format::Bf16, true) => doubles::<HINT, 2>(rows, x, out, |at, mask| {
                let wide = _mm256_cvtepu16_epi32(_mm_maskz_loadu_epi16(mask, at.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }),
            _ => return false,
        }
    }
    true
}

/// Σ w·x of each row in four vectors of partial sums. `load` gives 16 elements, 0 where the mask has none.
///
/// # Safety
/// As [`dot`]; `BYTES` are an element's.
#[inline(always)]
unsafe fn floats<const HINT: i32, const BYTES: usize>(
    rows: Rows,
    x: *const f32,
    out: &mut [f32],
    load: impl Fn(*const u8, u16) -> __m512,
) {
    let Rows { at, inner, asked } = rows;
    let row = |at: *const u8| {
        // SAFETY: elements below `inner` exist in the row and in `x`; the others are masked.
        unsafe {
            let mut sums = [_mm512_setzero_ps(); 4];
            let mut k = 0;
            while k + 64 <= inner {
                ask::<HINT>(asked.ahead_of(at.add(k * BYTES)), 64 * BYTES);
                for (i, sum) in sums.iter_mut().enumerate() {
                    let k = k + 16 * i;
                    *sum = _mm512_fmadd_ps(load(at.add(k * BYTES), !0), _mm512_loadu_ps(x.add(k)), *sum);
                }
                k += 64;
            }
            while k < inner {
                let mask = if inner - k < 16 { (1 << (inner - k)) - 1 } else { !0 };
                let x = _mm512_maskz_loadu_ps(mask, x.add(k));
                sums[0] = _mm512_fmadd_ps(load(at.add(k * BYTES), mask), x, sums[0]);
                k += 16;
            }
            _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]))
        }
    };
    // SAFETY: the caller's promise.
    unsafe { each_row(at, inner * BYTES, out, row) }
}

/// Σ w·x of each row in f64. `load` gives 8 elements, 0 where the mask has none.
///
/// # Safety
/// As [`floats`].
#[inline(always)]
unsafe fn doubles<const HINT: i32, const BYTES: usize>(
    rows: Rows,
    x: *const f32,
    out: &mut [f32],
    load: impl Fn(*const u8, u8) -> __m256,
) {
    let Rows { mut at, inner, asked } = rows;
    for out in out {
        // SAFETY: elements below `inner` exist in the row and in `x`; the others are masked.
        unsafe {
            let mut sums = [_mm512_setzero_pd(); 4];
            let mut k = 0;
            while k + 32 <= inner {
                ask::<HINT>(asked.ahead_of(at.add(k * BYTES)), 32 * BYTES);
                for (i, sum) in sums.iter_mut().enumerate() {
                    let k = k + 8 * i;
                    let x = _mm512_cvtps_pd(_mm256_loadu_ps(x.add(k)));
                    *sum = _mm512_fmadd_pd(_mm512_cvtps_pd(load(at.add(k * BYTES), !0)), x, *sum);
                }
                k += 32;
            }
            while k < inner {
                let mask = if inner - k < 8 { (1 << (inner - k)) - 1 } else { !0 };
                let x = _mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, x.add(k)));
                sums[0] = _mm512_fmadd_pd(_mm512_cvtps_pd(load(at.add(k * BYTES), mask)), x, sums[0]);
                k += 8;
            }
            let sum = _mm512_add_pd(_mm512_add_pd(sums[0], sums[1]), _mm512_add_pd(sums[2], sums[3]));
            *out = _mm512_reduce_add_pd(sum) as f32;
            at = at.add(inner * BYTES);
        }
    }
}
