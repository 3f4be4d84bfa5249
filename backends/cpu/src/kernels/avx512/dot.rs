//! One token against rows of weights, unpacking and multiplying in registers: the decode step's kernels. Rows are walked
//! from their first byte to their last, four side by side at most, so that a matrix is read nearly as one stream; every
//! line is asked for ahead, at least four rows ahead, since hardware streams do not follow four rows at once.
//!
//! Integer sums are exact inside a block, scales of sub-blocks included; floats are summed once a block, first to last, as
//! `mul::mul_q8` defines it. Formats whose codes are looked up go through AVX2's kernels: the looking up is what takes time.

use super::super::avx2::coded;
use super::super::avx2::dot::{dwords, scales};
use super::super::layout::TileStep;
use super::super::prefetch::{Asked, Rows, ask};
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
            Format::Q4K => super_blocks::<HINT, 144, true>(rows, tile, out, |b, t| k4_or_k5::<false>(b, t)),
            Format::Q5K => super_blocks::<HINT, 176, true>(rows, tile, out, |b, t| k4_or_k5::<true>(b, t)),
            Format::Q6K => super_blocks::<HINT, 210, false>(rows, tile, out, |b, t| q6_k(b, t)),
            Format::Q8_0 => small_blocks::<HINT, 34>(rows, tile, out, |b| q8_0(b), 128),
            Format::Q4_0 => small_blocks::<HINT, 18>(rows, tile, out, |b| q4_0(b), 8),
            other => return coded::dot::<HINT>(other, rows, tile, out),
        }
    }
    true
}

/// A super-block's activations.
#[derive(Clone, Copy)]
struct Token {
    q: *const i8,
    /// −Σq of 16 elements.
    neg_sums16: *const i32,
    /// −Σq of 32 elements.
    neg_sums32: *const i32,
}

/// What a super-block of each of four rows gives, a row in a lane.
#[derive(Clone, Copy)]
struct FourSums {
    products: __m128i,
    minima: __m128i,
    d: __m128,
    dmin: __m128,
}

/// The sum of both halves.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn both_halves(x: __m256i) -> __m128i {
    _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x))
}

/// For each 128 bits of four vectors the sum of its dwords, a vector's in a lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn fold_lanes([a, b, c, d]: [__m512i; 4]) -> __m512i {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
}

/// The sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn fold_ints(rows: [__m512i; 4]) -> __m128i {
    let x = fold_lanes(rows);
    both_halves(_mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64::<1>(x)))
}

/// The sums of the dwords of four 128 bits: the second and the last of `ab`, the second and the last of `cd`.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn fold_odd_lanes(ab: __m512i, cd: __m512i) -> __m128i {
    let x = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    let (ac, bd) = (_mm512_extracti32x4_epi32::<1>(x), _mm512_extracti32x4_epi32::<3>(x));
    let (ab, cd) = (_mm_unpacklo_epi32(ac, bd), _mm_unpackhi_epi32(ac, bd));
    _mm_add_epi32(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd))
}

/// `sum` + `ints` · (`d` · `a`), row by row.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,fma")]
fn add_scaled(sum: __m128, ints: __m128i, d: __m128, a: f32) -> __m128 {
    _mm_fmadd_ps(_mm_mul_ps(d, _mm_set1_ps(a)), _mm_cvtepi32_ps(ints), sum)
}

/// [`dot`] for formats in super-blocks of `BYTES` bytes, with `MINIMA` or without; `blocks` takes one of each of four rows.
///
/// # Safety
/// As [`dot`].
#[inline(always)]
unsafe fn super_blocks<const HINT: i32, const BYTES: usize, const MINIMA: bool>(
    rows: Rows,
    tile: TileStep<'_>,
    out: &mut [f32],
    blocks: impl Fn([*const u8; 4], Token) -> FourSums,
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
                let token = Token {
                    q: tile.q.as_ptr().add(256 * i),
                    neg_sums16: tile.neg_sums16.as_ptr().add(16 * i),
                    neg_sums32: tile.neg_sums32.as_ptr().add(8 * i),
                };
                for at in four {
                    ask::<HINT>(at.wrapping_offset(distance), BYTES);
                }
                let FourSums { products, minima, d, dmin } = blocks(four, token);
                if MINIMA {
                    sum = add_scaled(sum, minima, dmin, *scale);
                }
                sum = add_scaled(sum, products, d, *scale);
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

/// `low` in each 16 bits of the first 32 bytes, `high` in those of the others: amounts to shift by.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(low: i16, high: i16) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(_mm256_set1_epi16(low)), _mm256_set1_epi16(high))
}

/// Bytes 0..32 from `low` on, then 0..32 from `high` on.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn join(low: *const u8, high: *const u8) -> __m512i {
    // SAFETY: the caller's promise; no alignment is needed.
    unsafe {
        let low = _mm512_castsi256_si512(_mm256_loadu_si256(low.cast()));
        _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(high.cast()))
    }
}

/// 16 bytes of each of four rows, one behind the other.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn heads(at: [*const u8; 4]) -> __m512i {
    // SAFETY: the caller's promise; no alignment is needed.
    unsafe {
        let [a, b, c, d] = at.map(|at| _mm_loadu_si128(at.cast()));
        let ab = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(a), b);
        _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(ab, c), d)
    }
}

/// `first` + Σ_sub scale · Σ u·q of a super-block, spread over the lanes. `u` and `q` are 4 × 64 elements, `u` below 64 each;
/// `which` gives for each word of the two packed vectors the number of its scale among `scales`.
///
/// Four products make a dword that 16 bits can hold (4 · 63 · 127), so two vectors become one before the scales: 128 bits
/// of it hold 16 elements of the one, then 16 of the other, as 4 words each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn scaled(first: __m512i, u: [__m512i; 4], q: [__m512i; 4], scales: __m512i, which: [__m512i; 2]) -> __m512i {
    let (zero, mut sum) = (_mm512_setzero_si512(), first);
    for pair in 0..2 {
        let a = _mm512_dpbusd_epi32(zero, u[2 * pair], q[2 * pair]);
        let b = _mm512_dpbusd_epi32(zero, u[2 * pair + 1], q[2 * pair + 1]);
        let scales = _mm512_permutexvar_epi16(which[pair], scales);
        sum = _mm512_dpwssd_epi32(sum, _mm512_packs_epi32(a, b), scales);
    }
    sum
}

/// `which` of [`scaled`] for row `row` of two, whose 16 words each follow one another.
#[inline]
#[target_feature(enable = "avx512f")]
fn scales_of(row: usize, words: &'static [[[u16; 32]; 2]; 2]) -> [__m512i; 2] {
    // SAFETY: 64 bytes each.
    words[row].each_ref().map(|words| unsafe { _mm512_loadu_si512(words.as_ptr().cast()) })
}

/// Of two rows, of the two packed vectors: for each word the number of its scale, where there is one for 32 elements. A vector
/// holds sub-blocks 4·pair and 4·pair + 1 in its first 256 bits, the two that follow in the others.
static SCALES_OF_32: [[[u16; 32]; 2]; 2] = scale_numbers(32);

/// The same where there is one for 16 elements, all in order.
static SCALES_OF_16: [[[u16; 32]; 2]; 2] = scale_numbers(16);

const fn scale_numbers(elems: usize) -> [[[u16; 32]; 2]; 2] {
    let mut numbers = [[[0; 32]; 2]; 2];
    let mut i = 0;
    while i < 128 {
        let (row, pair, word) = (i / 64, i / 32 % 2, i % 32);
        let (lane, second) = (word / 8, word % 8 / 4);
        let number =
            if elems == 32 { 4 * pair + lane / 2 * 2 + second } else { 8 * pair + 4 * second + lane };
        numbers[row][pair][word] = (16 * row + number) as u16;
        i += 1;
    }
    numbers
}

/// Blocks of Q4_K or Q5_K (`FIFTH`) of four rows: Σ scale·(u·q), Σ min·(−Σq), d and dmin. Block: d, dmin, 12 bytes of 6-bit
/// scales and minima, with `FIFTH` 32 bytes whose bit s belongs to sub-block s, then 32 bytes for each two sub-blocks.
///
/// # Safety
/// The blocks and the token's elements are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn k4_or_k5<const FIFTH: bool>(blocks: [*const u8; 4], token: Token) -> FourSums {
    // SAFETY: the caller's promise.
    unsafe {
        let heads = heads(blocks);
        let both = scales_and_mins(heads);
        // 8 words of scales, 8 of minima, of two rows.
        let words = [
            _mm512_cvtepu8_epi16(_mm512_castsi512_si256(both)),
            _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64::<1>(both)),
        ];
        let sums = _mm256_cvtepi32_epi16(_mm256_loadu_si256(token.neg_sums32.cast()));
        let sums = _mm512_broadcast_i64x4(_mm256_inserti128_si256::<1>(_mm256_setzero_si256(), sums));
        let minima = fold_odd_lanes(_mm512_madd_epi16(words[0], sums), _mm512_madd_epi16(words[1], sums));

        // Sub-blocks 0 and 2, 1 and 3, 4 and 6, 5 and 7.
        let q = [0, 32, 128, 160].map(|at| join(token.q.add(at).cast(), token.q.add(at + 64).cast()));
        let nibble = _mm512_set1_epi8(15);
        let mut products = [_mm512_setzero_si512(); 4];
        for (r, products) in products.iter_mut().enumerate() {
            let qs = blocks[r].add(if FIFTH { 48 } else { 16 });
            let (x, y) = (_mm512_loadu_si512(qs.cast()), _mm512_loadu_si512(qs.add(64).cast()));
            let shifted = [x, _mm512_srli_epi16::<4>(x), y, _mm512_srli_epi16::<4>(y)];
            let mut u = shifted.map(|x| _mm512_and_si512(x, nibble));
            if FIFTH {
                let fifth = _mm512_broadcast_i64x4(_mm256_loadu_si256(blocks[r].add(16).cast()));
                let shifted = [
                    _mm512_sllv_epi16(fifth, halves(4, 2)),
                    _mm512_sllv_epi16(fifth, halves(3, 1)),
                    _mm512_srlv_epi16(fifth, halves(0, 2)),
                    _mm512_srlv_epi16(fifth, halves(1, 3)),
                ];
                for (u, fifth) in u.iter_mut().zip(shifted) {
                    *u = _mm512_or_si512(*u, _mm512_and_si512(fifth, _mm512_set1_epi8(16)));
                }
            }
            let which = scales_of(r % 2, &SCALES_OF_32);
            *products = scaled(_mm512_setzero_si512(), u, q, words[r / 2], which);
        }
        let [d, dmin] = scales(_mm512_castsi512_si128(_mm512_permutexvar_epi32(first_dwords(), heads)));
        FourSums { products: fold_ints(products), minima, d, dmin }
    }
}

/// The numbers of the first dwords of four 128 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn first_dwords() -> __m512i {
    _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12)
}

/// The 6-bit scales and minima of blocks of Q4_K or Q5_K from their first 16 bytes, a block in 128 bits: eight bytes of
/// scales, eight of minima. `avx2::dot::scales_and_mins` tells how they are packed.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn scales_and_mins(heads: __m512i) -> __m512i {
    let four = |a: i32, b, c, d| _mm512_set4_epi32(d, c, b, a);
    // Dwords s0, s2, s1, s2.
    let low = _mm512_srlv_epi32(_mm512_shuffle_epi32::<0b11_10_11_01>(heads), four(0, 0, 0, 4));
    let low = _mm512_and_si512(low, four(0x3f3f_3f3f, 0x0f0f_0f0f, 0x3f3f_3f3f, 0x0f0f_0f0f));
    // s0 in the second, s1 in the last.
    let high = _mm512_srli_epi32::<2>(_mm512_shuffle_epi32::<0b10_00_01_00>(heads));
    _mm512_or_si512(low, _mm512_and_si512(high, four(0, 0x3030_3030, 0, 0x3030_3030)))
}

/// Blocks of Q6_K of four rows: Σ scale·(u·q − 32·Σq), and d. Block: in each half of 128 elements 64 bytes hold the low
/// nibbles, first of 64 elements, then of the other 64; 64 bytes of two more bits follow, 32 a half; 16 signed scales; d.
///
/// # Safety
/// As [`k4_or_k5`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn q6_k(blocks: [*const u8; 4], token: Token) -> FourSums {
    // SAFETY: the caller's promise.
    unsafe {
        let heads = heads(blocks.map(|block| block.add(192)));
        let words = [
            _mm512_cvtepi8_epi16(_mm512_castsi512_si256(heads)),
            _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64::<1>(heads)),
        ];
        let sums = _mm512_cvtepi32_epi16(_mm512_loadu_si512(token.neg_sums16.cast()));
        let sums = _mm512_broadcast_i64x4(sums);
        let zeros = words.map(|words| _mm512_slli_epi32::<5>(_mm512_madd_epi16(words, sums)));

        let q = [0, 64, 128, 192].map(|at| _mm512_loadu_si512(token.q.add(at).cast()));
        let (nibble, two_bits) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
        let mut products = [_mm512_setzero_si512(); 4];
        for (r, products) in products.iter_mut().enumerate() {
            let block = blocks[r];
            let mut u = [_mm512_setzero_si512(); 4];
            for half in 0..2 {
                let low = _mm512_loadu_si512(block.add(64 * half).cast());
                let high = _mm512_broadcast_i64x4(_mm256_loadu_si256(block.add(128 + 32 * half).cast()));
                let first = _mm512_and_si512(_mm512_sllv_epi16(high, halves(4, 2)), two_bits);
                let second = _mm512_and_si512(_mm512_srlv_epi16(high, halves(0, 2)), two_bits);
                u[2 * half] = _mm512_or_si512(_mm512_and_si512(low, nibble), first);
                u[2 * half + 1] =
                    _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16::<4>(low), nibble), second);
            }
            let own = if r % 2 == 0 { 0x00ff } else { 0xff00 };
            let zero = _mm512_maskz_mov_epi32(own, zeros[r / 2]);
            *products = scaled(zero, u, q, words[r / 2], scales_of(r % 2, &SCALES_OF_16));
        }
        let [d, _] = scales(dwords(blocks.map(|block| half_bits(block.add(208)))));
        FourSums { products: fold_ints(products), minima: _mm_setzero_si128(), d, dmin: _mm_setzero_ps() }
    }
}

/// Q8_0's elements of two blocks, plus 128.
///
/// # Safety
/// The blocks are readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn q8_0([first, second]: [*const u8; 2]) -> __m512i {
    // SAFETY: the caller's promise.
    _mm512_xor_si512(unsafe { join(first.add(2), second.add(2)) }, _mm512_set1_epi8(i8::MIN))
}

/// Q4_0's elements of two blocks, plus 8: the low nibbles of 16 bytes, then the high ones.
///
/// # Safety
/// As [`q8_0`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn q4_0(blocks: [*const u8; 2]) -> __m512i {
    // SAFETY: the caller's promise.
    let [first, second] =
        blocks.map(|block| _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(block.add(2).cast()) }));
    let x = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
    let by = _mm512_set_epi64(HIGH, HIGH, 0, 0, HIGH, HIGH, 0, 0);
    _mm512_and_si512(_mm512_srlv_epi16(x, by), _mm512_set1_epi8(15))
}

/// Four words that shift to the high nibbles.
const HIGH: i64 = 0x0004_0004_0004_0004;

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
            let (mut last_q, mut last_scales) = ([0; 128], [0.0; 4]);
            for first in (0..blocks).step_by(4) {
                let left = (blocks - first).min(4);
                let (mut q, mut scales) = (tile.q.as_ptr().add(32 * first), tile.scale.as_ptr().add(first));
                if left < 4 {
                    last_q[..32 * left].copy_from_slice(&tile.q[32 * first..32 * blocks]);
                    last_scales[..left].copy_from_slice(&tile.scale[first..blocks]);
                    (q, scales) = (last_q.as_ptr(), last_scales.as_ptr());
                }
                for at in four {
                    ask::<HINT>(at.wrapping_offset(distance), 4 * BYTES);
                }
                let [scaled, ints] = four_blocks::<BYTES>(four, left, q, scales, &elements, zero);
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

/// Four blocks of each of four rows, of which `left` exist: 128 bits a block, a row in a lane, of d · a and of
/// u·q − zero·Σq.
///
/// # Safety
/// As [`small_blocks`]; `q` has 128 elements, `scales` four.
#[inline(always)]
unsafe fn four_blocks<const BYTES: usize>(
    rows: [*const u8; 4],
    left: usize,
    q: *const i8,
    scales: *const f32,
    elements: &impl Fn([*const u8; 2]) -> __m512i,
    zero: u8,
) -> [[__m128; 4]; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let pairs = [
            Pair::new(_mm512_loadu_si512(q.cast()), zero),
            Pair::new(_mm512_loadu_si512(q.add(64).cast()), zero),
        ];
        let offsets = [0, BYTES * (left - 1).min(1), BYTES * (left - 1).min(2), BYTES * (left - 1).min(3)];
        let (mut ints, mut bits) = ([[_mm512_setzero_si512(); 4]; 2], [0; 4]);
        for r in 0..4 {
            let block = |i: usize| rows[r].add(offsets[i]);
            ints[0][r] = pairs[0].times(elements([block(0), block(1)]));
            ints[1][r] = pairs[1].times(elements([block(2), block(3)]));
            let half = |i| u64::from(half_bits(block(i)));
            bits[r] = (half(0) | half(1) << 16 | half(2) << 32 | half(3) << 48).cast_signed();
        }
        let scaled = _mm512_mul_ps(block_scales(bits), spread(_mm_loadu_ps(scales)));
        [lanes(scaled), lanes(_mm512_cvtepi32_ps(fold_blocks(ints)))]
    }
}

/// The four 128 bits of a vector.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn lanes(x: __m512) -> [__m128; 4] {
    [
        _mm512_castps512_ps128(x),
        _mm512_extractf32x4_ps::<1>(x),
        _mm512_extractf32x4_ps::<2>(x),
        _mm512_extractf32x4_ps::<3>(x),
    ]
}

/// Each of four floats in all lanes of 128 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread(x: __m128) -> __m512 {
    _mm512_permutexvar_ps(
        _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
        _mm512_castps128_ps512(x),
    )
}

/// The f16 of four blocks of each of four rows, a row's in 64 bits, as floats: 128 bits a block, a row in a lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn block_scales([a, b, c, d]: [i64; 4]) -> __m512 {
    let by_block = _mm256_setr_epi16(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_cvtph_ps(_mm256_permutexvar_epi16(by_block, _mm256_setr_epi64x(a, b, c, d)))
}

/// Of four rows, the sums of four halves of vectors, two of each vector: 128 bits a half, a row in a lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn fold_blocks(ints: [[__m512i; 4]; 2]) -> __m512i {
    let [x, y] = ints;
    let (x, y) = (fold_lanes(x), fold_lanes(y));
    let even = _mm512_shuffle_i32x4::<0b10_00_10_00>(x, y);
    _mm512_add_epi32(even, _mm512_shuffle_i32x4::<0b11_01_11_01>(x, y))
}

/// The bits of the f16 at `at`.
///
/// # Safety
/// It is readable.
#[inline(always)]
unsafe fn half_bits(at: *const u8) -> u32 {
    // SAFETY: the caller's promise.
    u32::from(unsafe { at.cast::<u16>().read_unaligned() })
}

/// The activations of two blocks of 32: what all rows share.
#[derive(Clone, Copy)]
struct Pair {
    q: __m512i,
    /// −zero · Σq of four elements, for each four.
    offsets: __m512i,
}

impl Pair {
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn new(q: __m512i, zero: u8) -> Pair {
        let none = _mm512_setzero_si512();
        let offsets = _mm512_dpbusd_epi32(none, _mm512_set1_epi8(zero.cast_signed()), q);
        Pair { q, offsets: _mm512_sub_epi32(none, offsets) }
    }

    /// u·q − zero·Σq of both blocks, each in the lanes of its half.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn times(self, u: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(self.offsets, u, self.q)
    }
}
