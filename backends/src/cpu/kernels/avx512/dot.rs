//! One token against rows of weights, unpacking and multiplying in registers: the decode step's kernels. Each walks one
//! row from its first byte to its last, so that a matrix is read as one stream, which the hardware fetches ahead.
//!
//! Integer sums are exact inside a block, scales of sub-blocks included; floats are summed once a block, in 16 lanes that
//! fold when the row ends.

use super::super::layout::{Lanes, PANEL_ROWS, TileStep};
use moe_run_graph::quant::Format;
use std::arch::x86_64::*;

/// How far ahead of the arithmetic a row is asked for: hardware streams stop at the end of a page.
const AHEAD_BYTES: usize = 2048;

/// The products of `rows` ≤ 16 rows of `inner` elements, one behind the other from `at` on, with a one-token tile of as
/// many elements; `None` for formats without a kernel here.
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL and VNNI; the rows are readable; `inner` is a whole number of blocks, and the tile
/// has that many elements with their sums and scales, a scale per 256 for super-blocks and per 32 for the others.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn dot(
    format: Format,
    at: *const u8,
    rows: usize,
    inner: usize,
    tile: TileStep<'_>,
) -> Option<Lanes> {
    // SAFETY: the caller's promise covers every block of every row.
    unsafe {
        Some(match format {
            Format::Q4K => each_row::<144>(at, rows, inner / 256, tile, |b, t| k4_or_k5::<false>(b, t)),
            Format::Q5K => each_row::<176>(at, rows, inner / 256, tile, |b, t| k4_or_k5::<true>(b, t)),
            Format::Q6K => each_row::<210>(at, rows, inner / 256, tile, |b, t| q6_k(b, t)),
            Format::Q8_0 => each_row_of_pairs::<34>(at, rows, inner / 32, tile, |b| q8_0(b), 128),
            Format::Q4_0 => each_row_of_pairs::<18>(at, rows, inner / 32, tile, |b| nibbles(b.add(2)), 8),
            _ => return None,
        })
    }
}

/// A super-block's activations.
#[derive(Clone, Copy)]
struct Token {
    q: *const i8,
    neg_sums16: *const i32,
    neg_sums32: *const i32,
    scale: f32,
}

/// For each row, Σ over its super-blocks of `block(block, token)`.
///
/// # Safety
/// As [`dot`]; `BYTES` are a block's.
#[inline(always)]
unsafe fn each_row<const BYTES: usize>(
    mut at: *const u8,
    rows: usize,
    blocks: usize,
    tile: TileStep<'_>,
    block: impl Fn(*const u8, Token) -> __m512,
) -> Lanes {
    let mut out = Lanes([0.0; PANEL_ROWS]);
    for row in &mut out.0[..rows] {
        // SAFETY: blocks below `blocks` exist in the row and in the tile.
        unsafe {
            let mut sum = _mm512_setzero_ps();
            for b in 0..blocks {
                prefetch::<BYTES>(at);
                let token = Token {
                    q: tile.q.as_ptr().add(256 * b),
                    neg_sums16: tile.neg_sums16.as_ptr().add(16 * b),
                    neg_sums32: tile.neg_sums32.as_ptr().add(8 * b),
                    scale: *tile.scale.as_ptr().add(b),
                };
                sum = _mm512_add_ps(sum, block(at, token));
                at = at.add(BYTES);
            }
            *row = _mm512_reduce_add_ps(sum);
        }
    }
    out
}

/// Asks for as many bytes as a block has, [`AHEAD_BYTES`] behind its start.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unused_unsafe, reason = "newer toolchains call it safe")]
fn prefetch<const BYTES: usize>(at: *const u8) {
    let at = at.wrapping_add(AHEAD_BYTES);
    for line in 0..BYTES.div_ceil(64) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(64 * line).cast()) };
    }
}

/// 32 bytes, twice.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn twice(at: *const u8) -> __m512i {
    // SAFETY: the caller's promise; no alignment is needed.
    _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(at.cast()) })
}

/// `low` in each 16 bits of the first 32 bytes, `high` in those of the others: amounts to shift by.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(low: i16, high: i16) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(_mm256_set1_epi16(low)), _mm256_set1_epi16(high))
}

/// Two halves of f16 in a dword as floats, the first in lane 0.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,f16c")]
fn two_halves(bits: u32) -> __m128 {
    _mm_cvtph_ps(_mm_cvtsi32_si128(bits.cast_signed()))
}

/// Σ_sub scale · Σ u·q of a super-block, spread over the lanes. `u` are 4 × 64 elements in order, below 64 each, `scales`
/// one for each 16 elements, with `REPEAT` 2 one for each 32.
///
/// Four products make a dword that 16 bits can hold (4 · 63 · 127), so two vectors become one before the scales.
///
/// # Safety
/// As [`dot`]; `q` has 256 elements.
#[inline(always)]
unsafe fn scaled<const REPEAT: usize>(u: [__m512i; 4], q: *const i8, scales: __m256i) -> __m512i {
    let sub_blocks = const { &[sub_blocks(0, REPEAT), sub_blocks(1, REPEAT)] };
    // SAFETY: the caller's promise; no load needs alignment.
    unsafe {
        let scales = _mm512_castsi256_si512(scales);
        let (zero, mut sum) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        for pair in 0..2 {
            let load = |i: usize| _mm512_loadu_si512(q.add(64 * i).cast());
            let a = _mm512_dpbusd_epi32(zero, u[2 * pair], load(2 * pair));
            let b = _mm512_dpbusd_epi32(zero, u[2 * pair + 1], load(2 * pair + 1));
            // 128 bits of the packed vector hold 16 elements of `a`, then 16 of `b`, as 4 words each.
            let which = _mm512_loadu_si512(sub_blocks[pair].as_ptr().cast());
            let scales = _mm512_permutexvar_epi16(which, scales);
            sum = _mm512_dpwssd_epi32(sum, _mm512_packs_epi32(a, b), scales);
        }
        sum
    }
}

/// For each word of [`scaled`]'s packed vector `pair`: the number of its scale.
const fn sub_blocks(pair: usize, repeat: usize) -> [u16; 32] {
    let mut words = [0; 32];
    let mut word = 0;
    while word < 32 {
        words[word] = ((8 * pair + word % 8 / 4 * 4 + word / 8) / repeat) as u16;
        word += 1;
    }
    words
}

/// Q4_K and Q5_K (`FIFTH`): a · (d · Σ scale·(u·q) + dmin · Σ min·(−Σq)). Block: d, dmin, 12 bytes of 6-bit scales and
/// minima, with `FIFTH` 32 bytes whose bit s belongs to sub-block s, then 32 bytes for each two sub-blocks.
///
/// # Safety
/// The block and the token's elements are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn k4_or_k5<const FIFTH: bool>(block: *const u8, token: Token) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let word = |at: usize| block.add(at).cast::<u32>().read_unaligned();
        let (s0, s1, s2) = (word(4), word(8), word(12));
        let both = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).cast_signed();
        let scales = both(s0 & 0x3f3f_3f3f, (s2 & 0x0f0f_0f0f) | (s0 >> 2 & 0x3030_3030));
        let mins = both(s1 & 0x3f3f_3f3f, (s2 >> 4 & 0x0f0f_0f0f) | (s1 >> 2 & 0x3030_3030));

        let nibble = _mm512_set1_epi8(15);
        let qs = block.add(if FIFTH { 48 } else { 16 });
        let mut u = [_mm512_setzero_si512(); 4];
        for (pair, u) in u.iter_mut().enumerate() {
            *u = _mm512_and_si512(_mm512_srlv_epi16(twice(qs.add(32 * pair)), halves(0, 4)), nibble);
        }
        if FIFTH {
            let fifth = twice(block.add(16));
            let shifted = [
                _mm512_sllv_epi16(fifth, halves(4, 3)),
                _mm512_sllv_epi16(fifth, halves(2, 1)),
                _mm512_srlv_epi16(fifth, halves(0, 1)),
                _mm512_srlv_epi16(fifth, halves(2, 3)),
            ];
            for (u, fifth) in u.iter_mut().zip(shifted) {
                *u = _mm512_or_si512(*u, _mm512_and_si512(fifth, _mm512_set1_epi8(16)));
            }
        }
        let scales = _mm256_castsi128_si256(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(scales)));
        let sum = scaled::<2>(u, token.q, scales);
        let neg_sums = _mm256_loadu_si256(token.neg_sums32.cast());
        let min_sum = _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(mins)), neg_sums);

        let d = _mm_mul_ps(two_halves(word(0)), _mm_set1_ps(token.scale));
        let dmin = _mm256_broadcastss_ps(_mm_movehdup_ps(d));
        let mins = _mm256_mul_ps(_mm256_cvtepi32_ps(min_sum), dmin);
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_broadcastss_ps(d), _mm512_zextps256_ps512(mins))
    }
}

/// Q6_K: a · d · Σ scale·(u·q − 32·Σq). Block: in each half of 128 elements 64 bytes hold the low nibbles, first of 64
/// elements, then of the other 64; 64 bytes of two more bits follow, 32 a half; 16 signed scales; d.
///
/// # Safety
/// As [`k4_or_k5`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn q6_k(block: *const u8, token: Token) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let (nibble, two_bits) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
        let mut u = [_mm512_setzero_si512(); 4];
        for half in 0..2 {
            let low = _mm512_loadu_si512(block.add(64 * half).cast());
            let high = twice(block.add(128 + 32 * half));
            let first = _mm512_and_si512(_mm512_sllv_epi16(high, halves(4, 2)), two_bits);
            let second = _mm512_and_si512(_mm512_srlv_epi16(high, halves(0, 2)), two_bits);
            u[2 * half] = _mm512_or_si512(_mm512_and_si512(low, nibble), first);
            u[2 * half + 1] =
                _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16::<4>(low), nibble), second);
        }
        let scales = _mm_loadu_si128(block.add(192).cast());
        let sum = scaled::<1>(u, token.q, _mm256_cvtepi8_epi16(scales));
        let neg_sums = _mm512_loadu_si512(token.neg_sums16.cast());
        let zero = _mm512_slli_epi32::<5>(_mm512_mullo_epi32(_mm512_cvtepi8_epi32(scales), neg_sums));
        let d = two_halves(u32::from(block.add(208).cast::<u16>().read_unaligned()));
        let d = _mm512_broadcastss_ps(_mm_mul_ss(d, _mm_set_ss(token.scale)));
        _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(sum, zero)), d)
    }
}

/// Q8_0's elements of a block, plus 128.
///
/// # Safety
/// The block is readable.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn q8_0(block: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    _mm256_xor_si256(unsafe { _mm256_loadu_si256(block.add(2).cast()) }, _mm256_set1_epi8(i8::MIN))
}

/// 32 elements from 16 bytes: the low nibbles, then the high ones.
///
/// # Safety
/// The bytes are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn nibbles(at: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    let x = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(at.cast()) });
    let by = _mm256_inserti128_si256::<1>(_mm256_setzero_si256(), _mm_set1_epi16(4));
    _mm256_and_si256(_mm256_srlv_epi16(x, by), _mm256_set1_epi8(15))
}

/// For each row, Σ over its blocks of 32 elements of d · a · (u·q − zero·Σq). A block begins with d; `elements` gives
/// its u.
///
/// # Safety
/// As [`dot`]; `BYTES` are a block's.
#[inline(always)]
unsafe fn each_row_of_pairs<const BYTES: usize>(
    mut at: *const u8,
    rows: usize,
    blocks: usize,
    tile: TileStep<'_>,
    elements: impl Fn(*const u8) -> __m256i,
    zero: u8,
) -> Lanes {
    let mut out = Lanes([0.0; PANEL_ROWS]);
    let (q, scale) = (tile.q.as_ptr(), tile.scale.as_ptr());
    for row in &mut out.0[..rows] {
        // SAFETY: blocks below `blocks` exist in the row and in the tile.
        unsafe {
            let half = |block: *const u8| u32::from(block.cast::<u16>().read_unaligned());
            let zero = _mm512_set1_epi8(zero.cast_signed());
            let mut sum = _mm512_setzero_ps();
            let mut add = |u: __m512i, q: __m512i, d: __m128, a: __m128| {
                let products = _mm512_dpbusd_epi32(_mm512_setzero_si512(), u, q);
                let offsets = _mm512_dpbusd_epi32(_mm512_setzero_si512(), zero, q);
                let value = _mm512_cvtepi32_ps(_mm512_sub_epi32(products, offsets));
                let first_or_second = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
                let scale = _mm512_permutexvar_ps(first_or_second, _mm512_castps128_ps512(_mm_mul_ps(d, a)));
                sum = _mm512_fmadd_ps(value, scale, sum);
            };
            for b in (0..blocks / 2 * 2).step_by(2) {
                prefetch::<64>(at);
                let second = at.add(BYTES);
                let u = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(elements(at)), elements(second));
                let d = two_halves(half(at) | half(second) << 16);
                let a = _mm_castpd_ps(_mm_load_sd(scale.add(b).cast()));
                add(u, _mm512_loadu_si512(q.add(32 * b).cast()), d, a);
                at = second.add(BYTES);
            }
            if blocks % 2 == 1 {
                let b = blocks - 1;
                let q = _mm512_zextsi256_si512(_mm256_loadu_si256(q.add(32 * b).cast()));
                let u = _mm512_zextsi256_si512(elements(at));
                add(u, q, two_halves(half(at)), _mm_load_ss(scale.add(b)));
                at = at.add(BYTES);
            }
            *row = _mm512_reduce_add_ps(sum);
        }
    }
    out
}

/// As [`dot`], for F32, F16 and BF16 against `inner` floats `x`; `None` for other formats.
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL and VNNI; the rows are readable, and so are `inner` elements of `x`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn dot_floats(
    format: Format,
    at: *const u8,
    rows: usize,
    inner: usize,
    x: *const f32,
) -> Option<Lanes> {
    // SAFETY: the caller's promise; a masked element is not read.
    unsafe {
        Some(match format {
            Format::F32 => each_row_of_floats::<4>(at, rows, inner, x, |at, mask| {
                _mm512_maskz_loadu_ps(mask, at.cast())
            }),
            Format::F16 => each_row_of_floats::<2>(at, rows, inner, x, |at, mask| {
                _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at.cast()))
            }),
            Format::Bf16 => each_row_of_floats::<2>(at, rows, inner, x, |at, mask| {
                let wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }),
            _ => return None,
        })
    }
}

/// For each row, Σ w·x in four vectors of partial sums. `load` gives 16 elements, 0 where the mask has none.
///
/// # Safety
/// As [`dot_floats`]; `BYTES` are an element's.
#[inline(always)]
unsafe fn each_row_of_floats<const BYTES: usize>(
    mut at: *const u8,
    rows: usize,
    inner: usize,
    x: *const f32,
    load: impl Fn(*const u8, u16) -> __m512,
) -> Lanes {
    let mut out = Lanes([0.0; PANEL_ROWS]);
    for row in &mut out.0[..rows] {
        // SAFETY: elements below `inner` exist in the row and in `x`; the others are masked.
        unsafe {
            let mut sums = [_mm512_setzero_ps(); 4];
            let mut k = 0;
            while k + 64 <= inner {
                prefetch::<128>(at.add(k * BYTES));
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
            let sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
            *row = _mm512_reduce_add_ps(sum);
            at = at.add(inner * BYTES);
        }
    }
    out
}
