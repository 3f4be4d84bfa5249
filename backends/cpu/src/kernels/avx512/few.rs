//! A few tokens against rows of weights: as `dot`, but a block is unpacked once for all of them. What a step of several sequences
//! runs, in which few tokens meet an expert: unpacking a panel for them would take longer than multiplying.
//!
//! Each token's sums are made as `dot` makes them, in the same order.

use super::super::layout::{TILE_TOKENS, TileStep};
use super::super::prefetch::{Asked, Rows, ask};
use super::dot::{add_scaled, store};
use super::small_blocks::{LastBlocks, SmallBlocks, q4_0, q8_0};
use super::super_blocks::{FourBlocks, FourSums, Token, k4_or_k5, q6_k};
use moe_run_graph::quant::Format;
use std::arch::x86_64::*;

/// Whether there is a kernel for a format.
pub fn has(format: Format) -> bool {
    matches!(format, Format::Q4K | Format::Q5K | Format::Q6K | Format::Q8_0 | Format::Q4_0)
}

/// The products of `count` rows of `inner` elements, one behind the other from `at` on, with each of some one-token tiles: those of
/// token t are put to `out` from t · `stride` on. Nothing for formats that [`has`] does not have.
///
/// # Safety
/// As `dot::dot`, for each of 1 to 8 tiles; `out` has room.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn dot<const HINT: i32>(
    format: Format,
    at: *const u8,
    inner: usize,
    tiles: &[TileStep<'_>],
    asked: Asked,
    count: usize,
    out: &mut [f32],
    stride: usize,
) {
    let rows = Rows { at, inner, asked };
    let out = Out { out, count, stride };
    // SAFETY: the caller's promise covers every block of every row.
    unsafe {
        match format {
            Format::Q4K => super_blocks::<HINT, 144, true>(rows, tiles, out, |b| k4_or_k5::<false>(b)),
            Format::Q5K => super_blocks::<HINT, 176, true>(rows, tiles, out, |b| k4_or_k5::<true>(b)),
            Format::Q6K => super_blocks::<HINT, 210, false>(rows, tiles, out, |b| q6_k(b)),
            Format::Q8_0 => small_blocks::<HINT, 34>(rows, tiles, out, |b| q8_0(b), 128),
            Format::Q4_0 => small_blocks::<HINT, 18>(rows, tiles, out, |b| q4_0(b), 8),
            _ => {}
        }
    }
}

/// Where products go.
struct Out<'a> {
    out: &'a mut [f32],
    /// Rows.
    count: usize,
    /// From a token's products to the next one's.
    stride: usize,
}

impl Out<'_> {
    /// Stores the products of four rows from `first` on, or of those that there are.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl")]
    fn put(&mut self, first: usize, sums: &[__m128]) {
        let some = (self.count - first).min(4);
        for (sum, out) in sums.iter().zip(self.out[first..].chunks_mut(self.stride)) {
            let mut four = [0.0; 4];
            // SAFETY: 16 bytes.
            unsafe { _mm_storeu_ps(four.as_mut_ptr(), *sum) };
            store(four, &mut out[..some]);
        }
    }
}

/// [`dot`] for formats in super-blocks of `BYTES` bytes, with `MINIMA` or without; `blocks` unpacks one of each of four rows.
///
/// # Safety
/// As [`dot`].
#[inline(always)]
unsafe fn super_blocks<const HINT: i32, const BYTES: usize, const MINIMA: bool>(
    rows: Rows,
    tiles: &[TileStep<'_>],
    mut out: Out<'_>,
    blocks: impl Fn([*const u8; 4]) -> FourBlocks,
) {
    let Rows { at, inner, .. } = rows;
    let row_bytes = inner / 256 * BYTES;
    for first in (0..out.count).step_by(4) {
        // SAFETY: blocks below `inner / 256` exist in each of the rows and in the tiles; rows that do not exist stand for the
        // first, and their sums are dropped.
        unsafe {
            let row = |r: usize| at.add((first + if first + r < out.count { r } else { 0 }) * row_bytes);
            let mut four = [row(0), row(1), row(2), row(3)];
            let distance = rows.distance(four[0], row_bytes);
            let mut sums = [_mm_setzero_ps(); TILE_TOKENS];
            for i in 0..inner / 256 {
                for at in four {
                    ask::<HINT>(at.wrapping_offset(distance), BYTES);
                }
                let w = blocks(four);
                for (tile, sum) in tiles.iter().zip(&mut sums) {
                    let scale = *tile.scale.get_unchecked(i);
                    let FourSums { products, minima } = w.times::<MINIMA>(Token::of(tile, i));
                    if MINIMA {
                        *sum = add_scaled(*sum, minima, w.dmin, scale);
                    }
                    *sum = add_scaled(*sum, products, w.d, scale);
                }
                four = four.map(|at| at.add(BYTES));
            }
            out.put(first, &sums[..tiles.len()]);
        }
    }
}

/// [`dot`] for formats in blocks of 32 elements and `BYTES` bytes that begin with d, four blocks at a time. `elements` gives the
/// u of two.
///
/// # Safety
/// As [`dot`].
#[inline(always)]
unsafe fn small_blocks<const HINT: i32, const BYTES: usize>(
    rows: Rows,
    tiles: &[TileStep<'_>],
    mut out: Out<'_>,
    elements: impl Fn([*const u8; 2]) -> __m512i,
    zero: u8,
) {
    let Rows { at, inner, .. } = rows;
    let (blocks, row_bytes) = (inner / 32, inner / 32 * BYTES);
    for first_row in (0..out.count).step_by(4) {
        // SAFETY: as in `super_blocks`; where fewer than four blocks are left, the activations of the others are zeros and their
        // sums are dropped.
        unsafe {
            let row =
                |r: usize| at.add((first_row + if first_row + r < out.count { r } else { 0 }) * row_bytes);
            let mut four = [row(0), row(1), row(2), row(3)];
            let distance = rows.distance(four[0], row_bytes);
            let (mut sums, mut last) = ([_mm_setzero_ps(); TILE_TOKENS], LastBlocks::NONE);
            for first in (0..blocks).step_by(4) {
                let left = (blocks - first).min(4);
                for at in four {
                    ask::<HINT>(at.wrapping_offset(distance), 4 * BYTES);
                }
                let w = SmallBlocks::unpack::<BYTES>(four, left, &elements);
                for (tile, sum) in tiles.iter().zip(&mut sums) {
                    let (q, scales) = last.of(tile, first, left);
                    let [scaled, ints] = w.times(q, scales, zero);
                    for block in 0..4 {
                        if block < left {
                            *sum = _mm_fmadd_ps(scaled[block], ints[block], *sum);
                        }
                    }
                }
                four = four.map(|at| at.wrapping_add(4 * BYTES));
            }
            out.put(first_row, &sums[..tiles.len()]);
        }
    }
}
