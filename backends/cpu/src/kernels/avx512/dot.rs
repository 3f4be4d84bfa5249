//! One token against rows of weights, unpacking and multiplying in registers: the decode step's kernels. Rows are walked
//! from their first byte to their last, four side by side at most, so that a matrix is read nearly as one stream; every
//! line is asked for ahead, at least four rows ahead, since hardware streams do not follow four rows at once.
//!
//! Integer sums are exact inside a block, scales of sub-blocks included; floats are summed once a block, first to last, as
//! `mul::mul_q8` defines it. Formats whose codes are looked up go through AVX2's kernels: the looking up is what takes time.

use super::super::avx2::coded;
use super::super::layout::TileStep;
use super::super::prefetch::{Asked, Rows, ask};
use super::small_blocks::{LastBlocks, SmallBlocks, q4_0, q8_0};
use super::super_blocks::{FourBlocks, FourSums, Token, k4_or_k5, q6_k};
use moe_run_graph::quant::Format;
use std::arch::x86_64::*;

/// `out` = the products of as many rows of `inner` elements, one behind the other from `at` on, with a one-token tile of
/// as many elements; false for formats without a kernel here. Bytes are asked for with `HINT` where `asked` says.
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL and VNNI; the rows are readable; `inner` is a whole number of blocks, and the tile
/// has that many elements with their sums and scales, a scale per 256 for super-blocks and per 32 for the others.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn dot<const HINT: i32>(
    format: Format,
    at: *const u8,
    inner: usize,
    tile: TileStep<'_>,
    asked: Asked,
    out: &mut [f32],
) -> bool {
    let rows = Rows { at, inner, asked };
    // SAFETY: the caller's promise covers every block of every row.
    unsafe {
        match format {
            Format::Q4K => super_blocks::<HINT, 144, true>(rows, tile, out, |b| k4_or_k5::<false>(b)),
            Format::Q5K => super_blocks::<HINT, 176, true>(rows, tile, out, |b| k4_or_k5::<true>(b)),
            Format::Q6K => super_blocks::<HINT, 210, false>(rows, tile, out, |b| q6_k(b)),
            Format::Q8_0 => small_blocks::<HINT, 34>(rows, tile, out, |b| q8_0(b), 128),
            Format::Q4_0 => small_blocks::<HINT, 18>(rows, tile, out, |b| q4_0(b), 8),
            other => return coded::dot::<HINT>(other, rows, tile, out),
        }
    }
    true
}

/// `sum` + `ints` · (`d` · `a`), row by row.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,fma")]
pub(super) fn add_scaled(sum: __m128, ints: __m128i, d: __m128, a: f32) -> __m128 {
    _mm_fmadd_ps(_mm_mul_ps(d, _mm_set1_ps(a)), _mm_cvtepi32_ps(ints), sum)
}

/// [`dot`] for formats in super-blocks of `BYTES` bytes, with `MINIMA` or without; `blocks` unpacks one of each of four rows.
///
/// # Safety
/// As [`dot`].
#[inline(always)]
unsafe fn super_blocks<const HINT: i32, const BYTES: usize, const MINIMA: bool>(
    rows: Rows,
    tile: TileStep<'_>,
    out: &mut [f32],
    blocks: impl Fn([*const u8; 4]) -> FourBlocks,
) {
    let Rows { at, inner, .. } = rows;
    let row_bytes = inner / 256 * BYTES;
    for (i, out) in out.chunks_mut(4).enumerate() {
        // SAFETY: blocks below `inner / 256` exist in each of the rows and in the tile; rows that do not exist stand for
        // the first, and their sums are dropped.
        unsafe {
            let row = |r: usize| at.add((4 * i + if r < out.len() { r } else { 0 }) * row_bytes);
            let mut four = [row(0), row(1), row(2), row(3)];
            let distance = rows.distance(four[0], row_bytes);
            let mut sum = _mm_setzero_ps();
            for (i, scale) in tile.scale[..inner / 256].iter().enumerate() {
                for at in four {
                    ask::<HINT>(at.wrapping_offset(distance), BYTES);
                }
                let w = blocks(four);
                let FourSums { products, minima } = w.times::<MINIMA>(Token::of(&tile, i));
                if MINIMA {
                    sum = add_scaled(sum, minima, w.dmin, *scale);
                }
                sum = add_scaled(sum, products, w.d, *scale);
                four = four.map(|at| at.add(BYTES));
            }
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), sum);
            store(sums, out);
        }
    }
}

/// As many of the four as there is room for.
#[inline(always)]
pub fn store(sums: [f32; 4], out: &mut [f32]) {
    match out.first_chunk_mut::<4>() {
        Some(out) => *out = sums,
        None => out.copy_from_slice(&sums[..out.len()]),
    }
}

/// [`dot`] for formats in blocks of 32 elements and `BYTES` bytes that begin with d: Σ d · a · (u·q − zero·Σq), four
/// blocks at a time. `elements` gives the u of two.
///
/// # Safety
/// As [`dot`].
#[inline(always)]
unsafe fn small_blocks<const HINT: i32, const BYTES: usize>(
    rows: Rows,
    tile: TileStep<'_>,
    out: &mut [f32],
    elements: impl Fn([*const u8; 2]) -> __m512i,
    zero: u8,
) {
    let Rows { at, inner, .. } = rows;
    let (blocks, row_bytes) = (inner / 32, inner / 32 * BYTES);
    for (i, out) in out.chunks_mut(4).enumerate() {
        // SAFETY: as in `super_blocks`; where fewer than four blocks are left, the last stands for those that do not exist:
        // its activations are zeros there, and its sums are dropped.
        unsafe {
            let row = |r: usize| at.add((4 * i + if r < out.len() { r } else { 0 }) * row_bytes);
            let distance = rows.distance(row(0), row_bytes);
            let mut four = [row(0), row(1), row(2), row(3)];
            let mut sum = _mm_setzero_ps();
            let mut last = LastBlocks::NONE;
            for first in (0..blocks).step_by(4) {
                let left = (blocks - first).min(4);
                let (q, scales) = last.of(&tile, first, left);
                for at in four {
                    ask::<HINT>(at.wrapping_offset(distance), 4 * BYTES);
                }
                let w = SmallBlocks::unpack::<BYTES>(four, left, &elements);
                let [scaled, ints] = w.times(q, scales, zero);
                for block in 0..4 {
                    if block < left {
                        sum = _mm_fmadd_ps(scaled[block], ints[block], sum);
                    }
                }
                four = four.map(|at| at.wrapping_add(4 * BYTES));
            }
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), sum);
            store(sums, out);
        }
    }
}
