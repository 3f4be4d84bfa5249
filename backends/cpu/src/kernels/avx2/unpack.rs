//! The AVX2 version of unpacking plain floats: attention's keys above all.

use super::super::layout::{Lanes, PANEL_ROWS, PanelF32};
use half::f16;
use moe_run_graph::quant::Format;
use std::arch::x86_64::*;

/// A kernel as [`unpack_floats`].
pub type UnpackFloats = unsafe fn(Format, *const u8, usize, usize, &mut PanelF32);

/// Unpacks one step of 16 rows of F32, F16 or BF16.
///
/// # Safety
/// The CPU has AVX2 and F16C; `elems` elements of each row are readable, the rows `stride_bytes` apart; `elems` is a
/// multiple of 8.
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn unpack_floats(
    format: Format,
    at: *const u8,
    stride_bytes: usize,
    elems: usize,
    panel: &mut PanelF32,
) {
    let bytes = if format == Format::F32 { 4 } else { 2 };
    for (c, out) in panel.w[..elems].chunks_exact_mut(8).enumerate() {
        for first in (0..PANEL_ROWS).step_by(8) {
            let mut x = [_mm256_setzero_ps(); 8];
            for (r, x) in x.iter_mut().enumerate() {
                // SAFETY: 8 elements of a row, by the caller's promise; no load needs alignment.
                *x = unsafe {
                    let at = at.add((first + r) * stride_bytes + 8 * c * bytes);
                    match format {
                        Format::F32 => _mm256_loadu_ps(at.cast()),
                        Format::F16 => _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
                        _ => {
                            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
                            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                        }
                    }
                };
            }
            for (out, column) in out.iter_mut().zip(transposed(x)) {
                put(out, first, column);
            }
        }
    }
}

/// Rows `first..first + 8` of a column.
#[inline]
#[target_feature(enable = "avx2")]
fn put(out: &mut Lanes, first: usize, x: __m256) {
    let out = &mut out.0[first..first + 8];
    // SAFETY: 32 bytes; no alignment is needed.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) };
}

/// Columns of eight rows of eight.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(x: [__m256; 8]) -> [__m256; 8] {
    // Pairs of rows element by element, then fours of rows, in each half of 128 bits; then the halves.
    let pair = |a, b| [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)];
    let four = |a: [__m256; 2], b: [__m256; 2]| {
        [
            _mm256_shuffle_ps::<0x44>(a[0], b[0]),
            _mm256_shuffle_ps::<0xee>(a[0], b[0]),
            _mm256_shuffle_ps::<0x44>(a[1], b[1]),
            _mm256_shuffle_ps::<0xee>(a[1], b[1]),
        ]
    };
    let upper = four(pair(x[0], x[1]), pair(x[2], x[3]));
    let lower = four(pair(x[4], x[5]), pair(x[6], x[7]));
    let mut columns = [_mm256_setzero_ps(); 8];
    for i in 0..4 {
        columns[i] = _mm256_permute2f128_ps::<0x20>(upper[i], lower[i]);
        columns[i + 4] = _mm256_permute2f128_ps::<0x31>(upper[i], lower[i]);
    }
    columns
}

/// f16 to f32, 8 at a time.
#[target_feature(enable = "avx2,f16c")]
pub fn widen_halves(from: &[f16], to: &mut [f32]) {
    let ((from, rest), (to, to_rest)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    for (from, to) in from.iter().zip(to) {
        // SAFETY: 16 bytes to read, 32 to write; no alignment is needed.
        unsafe {
            let halves = _mm_loadu_si128(from.as_ptr().cast());
            _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(halves));
        }
    }
    for (from, to) in rest.iter().zip(to_rest) {
        *to = from.to_f32();
    }
}
