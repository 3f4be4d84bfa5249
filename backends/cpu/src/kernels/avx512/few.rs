//! A few tokens against rows of weights: as `dot`, but a block is unpacked once for all of them. What a step of several sequences
//! runs, in which few tokens meet an expert: unpacking a panel for them would take longer than multiplying.
//!
//! Each token's sums are made as `dot` makes them, in the same order.

use super::super::avx2::dot::scales;
use super::super::layout::{TILE_TOKENS, TileStep};
use super::super::prefetch::{Asked, Rows, ask};
use super::dot::{
    Block, Pair, Token, add_scaled, fold_halves, fold_small, half_bits, k4_or_k5, nibbles, q6_k, q8_0, store,
};
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
            Format::Q8_0 => pairs_of_blocks::<HINT, 34>(rows, tiles, out, |b| q8_0(b), 128),
            Format::Q4_0 => pairs_of_blocks::<HINT, 18>(rows, tiles, out, |b| nibbles(b.add(2)), 8),
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

/// [`dot`] for formats in super-blocks of `BYTES` bytes, with `MINIMA` or without; `block` unpacks one.
///
/// # Safety
/// As [`dot`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn super_blocks<const HINT: i32, const BYTES: usize, const MINIMA: bool>(
    rows: Rows,
    tiles: &[TileStep<'_>],
    mut out: Out<'_>,
    block: impl Fn(*const u8) -> Block,
) {
    let Rows { at, inner, .. } = rows;
    let row_bytes = inner / 256 * BYTES;
    for first in (0..out.count).step_by(4) {
        // SAFETY: blocks below `inner / 256` exist in each of the rows and in the tiles; rows that do not exist stand for the
        // first, and their sums are dropped.
        unsafe {
            let row = |r: usize| at.add((first + if first + r < out.count { r } else { 0 }) * row_bytes);
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            let distance = rows.distance(a, row_bytes);
            let unpacked = |at: *const u8| {
                ask::<HINT>(at.wrapping_offset(distance), BYTES);
                block(at)
            };
            let mut sums = [_mm_setzero_ps(); TILE_TOKENS];
            for i in 0..inner / 256 {
                let at = BYTES * i;
                let w = [unpacked(a.add(at)), unpacked(b.add(at)), unpacked(c.add(at)), unpacked(d.add(at))];
                let [d, dmin] = scales([w[0].d, w[1].d, w[2].d, w[3].d]);
                for (tile, sum) in tiles.iter().zip(&mut sums) {
                    let (token, scale) = (Token::of(tile, i), *tile.scale.get_unchecked(i));
                    let first = w[0].times::<MINIMA>(token);
                    let second = w[1].times::<MINIMA>(token);
                    let third = w[2].times::<MINIMA>(token);
                    let fourth = w[3].times::<MINIMA>(token);
                    if MINIMA {
                        let minima = fold_small([first.minima, second.minima, third.minima, fourth.minima]);
                        *sum = add_scaled(*sum, minima, dmin, scale);
                    }
                    let halves =
                        fold_halves([first.products, second.products, third.products, fourth.products]);
                    *sum = add_scaled(*sum, _mm_add_epi32(halves[0], halves[1]), d, scale);
                }
            }
            out.put(first, &sums[..tiles.len()]);
        }
    }
}

/// [`dot`] for formats in blocks of 32 elements and `BYTES` bytes that begin with d, two blocks at a time. `elements` gives a
/// block's u.
///
/// # Safety
/// As [`dot`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn pairs_of_blocks<const HINT: i32, const BYTES: usize>(
    rows: Rows,
    tiles: &[TileStep<'_>],
    mut out: Out<'_>,
    elements: impl Fn(*const u8) -> __m256i,
    zero: u8,
) {
    let Rows { at, inner, .. } = rows;
    let (blocks, row_bytes) = (inner / 32, inner / 32 * BYTES);
    for first in (0..out.count).step_by(4) {
        // SAFETY: as in `super_blocks`; of the last block of an odd number, the half that would lie behind it is zeros.
        unsafe {
            let row = |r: usize| at.add((first + if first + r < out.count { r } else { 0 }) * row_bytes);
            let rows_at = [row(0), row(1), row(2), row(3)];
            let distance = rows.distance(rows_at[0], row_bytes);
            let mut sums = [_mm_setzero_ps(); TILE_TOKENS];
            for block in (0..blocks).step_by(2) {
                let is_pair = block + 1 < blocks;
                let (mut u, mut bits) = ([_mm512_setzero_si512(); 4], [0; 4]);
                for r in 0..4 {
                    let at = rows_at[r].add(BYTES * block);
                    ask::<HINT>(at.wrapping_offset(distance), 2 * BYTES);
                    (u[r], bits[r]) = (_mm512_zextsi256_si512(elements(at)), half_bits(at));
                    if is_pair {
                        let second = at.add(BYTES);
                        u[r] = _mm512_inserti64x4::<1>(u[r], elements(second));
                        bits[r] |= half_bits(second) << 16;
                    }
                }
                let d = scales(bits);
                for (tile, sum) in tiles.iter().zip(&mut sums) {
                    let q = tile.q.as_ptr().add(32 * block);
                    let q = match is_pair {
                        true => _mm512_loadu_si512(q.cast()),
                        false => _mm512_zextsi256_si512(_mm256_loadu_si256(q.cast())),
                    };
                    let x = Pair::new(q, zero);
                    let ints = fold_halves([x.times(u[0]), x.times(u[1]), x.times(u[2]), x.times(u[3])]);
                    let scale = tile.scale.as_ptr().add(block);
                    *sum = add_scaled(*sum, ints[0], d[0], *scale);
                    if is_pair {
                        *sum = add_scaled(*sum, ints[1], d[1], *scale.add(1));
                    }
                }
            }
            out.put(first, &sums[..tiles.len()]);
        }
    }
}
