//! One token against a panel of 16 rows, unpacking and multiplying in registers: the decode step's kernel. Scales are
//! multiplied as integers, which stays exact inside a block; floats are summed once a block.

use super::super::layout::{Lanes, PANEL_ROWS, TileStep};
use super::unpack::{Rows, bits, high_half, low_half};
use moe_run_graph::quant::Format;
use std::arch::x86_64::*;

/// The product of a panel's 16 rows (from `at` on, `stride_bytes` apart, `inner` elements each) with a one-token tile of
/// as many elements; `None` for formats without a kernel here.
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL and VNNI; the rows are readable; `inner` is a whole number of blocks, and the tile
/// has that many elements with their sums and scales, a scale per 256 for super-blocks and per 32 for Q8_0.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn dot(
    format: Format,
    at: *const u8,
    stride_bytes: usize,
    inner: usize,
    tile: TileStep<'_>,
) -> Option<Lanes> {
    let rows = Rows { at, stride_bytes };
    // SAFETY: the caller's promise covers every block.
    let sums = unsafe {
        match format {
            Format::Q4K => super_blocks(rows, inner, tile, 144, |r, t| k4_or_k5::<false>(r, t)),
            Format::Q5K => super_blocks(rows, inner, tile, 176, |r, t| k4_or_k5::<true>(r, t)),
            Format::Q6K => super_blocks(rows, inner, tile, 210, |r, t| q6_k(r, t)),
            Format::Q8_0 => q8_0(rows, inner, tile),
            _ => return None,
        }
    };
    let mut out = Lanes([0.0; PANEL_ROWS]);
    // SAFETY: `Lanes` is 64 bytes, aligned to 64.
    unsafe { _mm512_store_ps(out.0.as_mut_ptr(), sums) };
    Some(out)
}

/// A block's activations.
#[derive(Clone, Copy)]
struct Token {
    q: *const i32,
    neg_sums16: *const i32,
    neg_sums32: *const i32,
}

/// Four activations, for all rows.
///
/// # Safety
/// `i` is below the block's dwords.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn four(token: Token, i: usize) -> __m512i {
    // SAFETY: the caller's promise; bytes need no alignment.
    _mm512_set1_epi32(unsafe { token.q.add(i).read_unaligned() })
}

/// Asks for the panel after this one, as many bytes as a block of 16 rows has: it is the next to be read.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unused_unsafe, reason = "newer toolchains call it safe")]
fn prefetch(rows: Rows, block: usize, block_bytes: usize) {
    let next = rows.at.wrapping_add(PANEL_ROWS * (rows.stride_bytes + block * block_bytes));
    for line in 0..(PANEL_ROWS * block_bytes).div_ceil(64) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(64 * line).cast()) };
    }
}

/// Σ over the blocks of `value of a block · activation scale`.
///
/// # Safety
/// As [`dot`].
#[inline(always)]
unsafe fn super_blocks(
    rows: Rows,
    inner: usize,
    tile: TileStep<'_>,
    block_bytes: usize,
    block: impl Fn(Rows, Token) -> __m512,
) -> __m512 {
    // SAFETY: blocks below `inner / 256` exist in rows and tile.
    unsafe {
        let mut sums = _mm512_setzero_ps();
        for b in 0..inner / 256 {
            prefetch(rows, b, block_bytes);
            let token = Token {
                q: tile.q.as_ptr().add(256 * b).cast(),
                neg_sums16: tile.neg_sums16.as_ptr().add(16 * b),
                neg_sums32: tile.neg_sums32.as_ptr().add(8 * b),
            };
            let value = block(rows.offset(b * block_bytes), token);
            sums = _mm512_fmadd_ps(value, _mm512_set1_ps(*tile.scale.as_ptr().add(b)), sums);
        }
        sums
    }
}

/// Byte `by / 8` of each dword.
#[inline]
#[target_feature(enable = "avx512f")]
fn byte_at(x: __m512i, by: u32) -> __m512i {
    _mm512_and_si512(_mm512_srlv_epi32(x, _mm512_set1_epi32(by as i32)), _mm512_set1_epi32(255))
}

/// Q4_K and Q5_K: d · Σ scale·(u·q) + dmin · Σ min·(−Σq).
///
/// # Safety
/// A block is readable in each row, and in `token`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn k4_or_k5<const FIFTH: bool>(rows: Rows, token: Token) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let [dd, s0, s1, s2] = rows.load();
        let scales = [bits::<0>(s0, 63), _mm512_or_si512(bits::<0>(s2, 15), bits::<2>(s0, 0x30))];
        let mins = [bits::<0>(s1, 63), _mm512_or_si512(bits::<4>(s2, 15), bits::<2>(s1, 0x30))];
        let fifth = if FIFTH { [rows.offset(16).load(), rows.offset(32).load()] } else { [[dd; 4]; 2] };
        let qs = rows.offset(if FIFTH { 48 } else { 16 });
        let (mut sum, mut min_sum) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        for pair in 0..4 {
            let (mut low, mut high) = (_mm512_setzero_si512(), _mm512_setzero_si512());
            for c in 0..2 {
                let x = qs.offset(pair * 32 + 16 * c).load();
                for j in 0..4 {
                    let (mut u, mut v) = (bits::<0>(x[j], 15), bits::<4>(x[j], 15));
                    if FIFTH {
                        let both = _mm512_srlv_epi32(fifth[c][j], _mm512_set1_epi32(2 * pair as i32));
                        let one = _mm512_set1_epi8(1);
                        u = _mm512_or_si512(u, _mm512_slli_epi32::<4>(_mm512_and_si512(both, one)));
                        let second = _mm512_and_si512(_mm512_srli_epi32::<1>(both), one);
                        v = _mm512_or_si512(v, _mm512_slli_epi32::<4>(second));
                    }
                    low = _mm512_dpbusd_epi32(low, u, four(token, pair * 16 + c * 4 + j));
                    high = _mm512_dpbusd_epi32(high, v, four(token, pair * 16 + 8 + c * 4 + j));
                }
            }
            let (half, by) = (pair / 2, pair as u32 % 2 * 16);
            for (x, s, by) in [(low, 2 * pair, by), (high, 2 * pair + 1, by + 8)] {
                sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(x, byte_at(scales[half], by)));
                let neg = _mm512_set1_epi32(*token.neg_sums32.add(s));
                min_sum = _mm512_add_epi32(min_sum, _mm512_mullo_epi32(neg, byte_at(mins[half], by)));
            }
        }
        let mins = _mm512_mul_ps(_mm512_cvtepi32_ps(min_sum), high_half(dd));
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), low_half(dd), mins)
    }
}

/// Q6_K: d · Σ scale·(u·q − 32·Σq).
///
/// # Safety
/// As [`k4_or_k5`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn q6_k(rows: Rows, token: Token) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let scales = rows.offset(192).load();
        let mut sum = _mm512_setzero_si512();
        for half in 0..2 {
            for c in 0..2 {
                let top = rows.offset(128 + half * 32 + 16 * c).load();
                let first = rows.offset(half * 64 + 16 * c).load();
                let second = rows.offset(half * 64 + 32 + 16 * c).load();
                let sub = |quarter: usize| half * 8 + quarter * 2 + c;
                let start = |quarter: usize| {
                    _mm512_slli_epi32::<5>(_mm512_set1_epi32(*token.neg_sums16.add(sub(quarter))))
                };
                let mut x = [start(0), start(1), start(2), start(3)];
                for j in 0..4 {
                    let k4 = half * 32 + c * 4 + j;
                    let mask = _mm512_set1_epi8(0x30);
                    let top0 = _mm512_and_si512(_mm512_slli_epi32::<4>(top[j]), mask);
                    let top1 = _mm512_and_si512(_mm512_slli_epi32::<2>(top[j]), mask);
                    let u = [
                        _mm512_or_si512(bits::<0>(first[j], 15), top0),
                        _mm512_or_si512(bits::<0>(second[j], 15), top1),
                        _mm512_or_si512(bits::<4>(first[j], 15), bits::<0>(top[j], 0x30)),
                        _mm512_or_si512(bits::<4>(second[j], 15), bits::<2>(top[j], 0x30)),
                    ];
                    for quarter in 0..4 {
                        x[quarter] =
                            _mm512_dpbusd_epi32(x[quarter], u[quarter], four(token, k4 + 8 * quarter));
                    }
                }
                for quarter in 0..4 {
                    let s = sub(quarter);
                    let up = _mm512_sllv_epi32(scales[s / 4], _mm512_set1_epi32(24 - 8 * (s as i32 % 4)));
                    let scale = _mm512_srai_epi32::<24>(up);
                    sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(x[quarter], scale));
                }
            }
        }
        _mm512_mul_ps(_mm512_cvtepi32_ps(sum), rows.offset(208).halves())
    }
}

/// Q8_0: Σ over blocks of d · (u·q − 128·Σq) · activation scale.
///
/// # Safety
/// As [`dot`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn q8_0(rows: Rows, inner: usize, tile: TileStep<'_>) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = _mm512_setzero_ps();
        for b in 0..inner / 32 {
            prefetch(rows, b, 34);
            let block = rows.offset(b * 34);
            let token = Token {
                q: tile.q.as_ptr().add(32 * b).cast(),
                neg_sums16: tile.neg_sums16.as_ptr(),
                neg_sums32: tile.neg_sums32.as_ptr(),
            };
            let neg = _mm512_set1_epi32(*token.neg_sums32.add(b));
            let mut sum = [_mm512_slli_epi32::<7>(neg), _mm512_setzero_si512()];
            for c in 0..2 {
                let x = block.offset(2 + 16 * c).load();
                for j in 0..4 {
                    let u = _mm512_xor_si512(x[j], _mm512_set1_epi8(i8::MIN));
                    sum[j % 2] = _mm512_dpbusd_epi32(sum[j % 2], u, four(token, c * 4 + j));
                }
            }
            let scale = _mm512_mul_ps(block.halves(), _mm512_set1_ps(*tile.scale.as_ptr().add(b)));
            sums = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(sum[0], sum[1])), scale, sums);
        }
        sums
    }
}
