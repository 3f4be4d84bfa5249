//! Super-blocks of four rows in registers: unpacked once, multiplied with as many tokens as there are. Scales of all four are
//! unpacked together, and their sums are folded together.

use super::super::avx2::dot::{dwords, scales};
use super::super::layout::TileStep;
use std::arch::x86_64::*;

/// A super-block's activations.
#[derive(Clone, Copy)]
pub(super) struct Token {
    q: *const i8,
    /// −Σq of 16 elements.
    neg_sums16: *const i32,
    /// −Σq of 32 elements.
    neg_sums32: *const i32,
}

impl Token {
    /// Those of super-block `i` of a one-token tile.
    ///
    /// # Safety
    /// The tile has that many.
    #[inline(always)]
    pub(super) unsafe fn of(tile: &TileStep<'_>, i: usize) -> Token {
        // SAFETY: the caller's promise.
        unsafe {
            Token {
                q: tile.q.as_ptr().add(256 * i),
                neg_sums16: tile.neg_sums16.as_ptr().add(16 * i),
                neg_sums32: tile.neg_sums32.as_ptr().add(8 * i),
            }
        }
    }
}

/// A super-block of each of four rows, unpacked.
#[derive(Clone, Copy)]
pub(super) struct FourBlocks {
    /// Of each row 4 × 64 elements, below 64 each. With minima: sub-blocks 0 and 2, 1 and 3, 4 and 6, 5 and 7; else in order.
    u: [[__m512i; 4]; 4],
    /// Of two rows each, as words: with minima 8 scales and 8 minima a row, else 16 scales.
    words: [__m512i; 2],
    /// d of each row, a row in a lane.
    pub(super) d: __m128,
    /// The minima's.
    pub(super) dmin: __m128,
}

/// What a super-block of each of four rows gives, a row in a lane.
#[derive(Clone, Copy)]
pub(super) struct FourSums {
    /// Σ scale·(u·q), with minima; Σ scale·(u·q − 32·Σq) without.
    pub(super) products: __m128i,
    /// Σ min·(−Σq).
    pub(super) minima: __m128i,
}

impl FourBlocks {
    /// The sums with a token.
    ///
    /// # Safety
    /// The token's elements are readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn times<const MINIMA: bool>(&self, token: Token) -> FourSums {
        let (mut products, mut minima) = ([_mm512_setzero_si512(); 4], _mm_setzero_si128());
        // SAFETY: the caller's promise.
        unsafe {
            if MINIMA {
                let sums = _mm256_cvtepi32_epi16(_mm256_loadu_si256(token.neg_sums32.cast()));
                let sums = _mm512_broadcast_i64x4(_mm256_inserti128_si256::<1>(_mm256_setzero_si256(), sums));
                let [ab, cd] = self.words;
                minima = fold_odd_lanes(_mm512_madd_epi16(ab, sums), _mm512_madd_epi16(cd, sums));
                let q = [0, 32, 128, 160].map(|at| join(token.q.add(at).cast(), token.q.add(at + 64).cast()));
                for (r, products) in products.iter_mut().enumerate() {
                    let which = scales_of(r % 2, &SCALES_OF_32);
                    *products = scaled(_mm512_setzero_si512(), self.u[r], q, self.words[r / 2], which);
                }
            } else {
                let sums = _mm512_cvtepi32_epi16(_mm512_loadu_si512(token.neg_sums16.cast()));
                let sums = _mm512_broadcast_i64x4(sums);
                let zeros = self.words.map(|words| _mm512_slli_epi32::<5>(_mm512_madd_epi16(words, sums)));
                let q = [0, 64, 128, 192].map(|at| _mm512_loadu_si512(token.q.add(at).cast()));
                for (r, products) in products.iter_mut().enumerate() {
                    let own = if r % 2 == 0 { 0x00ff } else { 0xff00 };
                    let zero = _mm512_maskz_mov_epi32(own, zeros[r / 2]);
                    *products =
                        scaled(zero, self.u[r], q, self.words[r / 2], scales_of(r % 2, &SCALES_OF_16));
                }
            }
        }
        FourSums { products: fold_ints(products), minima }
    }
}

/// For each 128 bits of four vectors the sum of its dwords, a vector's in a lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn fold_lanes([a, b, c, d]: [__m512i; 4]) -> __m512i {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
}

/// The sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn fold_ints(rows: [__m512i; 4]) -> __m128i {
    let x = fold_lanes(rows);
    let x = _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64::<1>(x));
    _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x))
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
pub(super) unsafe fn join(low: *const u8, high: *const u8) -> __m512i {
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

/// Blocks of Q4_K or Q5_K (`FIFTH`) of four rows. Block: d, dmin, 12 bytes of 6-bit scales and minima, with `FIFTH` 32 bytes
/// whose bit s belongs to sub-block s, then 32 bytes for each two sub-blocks.
///
/// # Safety
/// The blocks are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
pub(super) unsafe fn k4_or_k5<const FIFTH: bool>(blocks: [*const u8; 4]) -> FourBlocks {
    // SAFETY: the caller's promise.
    unsafe {
        let heads = heads(blocks);
        let both = scales_and_mins(heads);
        let words = [
            _mm512_cvtepu8_epi16(_mm512_castsi512_si256(both)),
            _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64::<1>(both)),
        ];
        let nibble = _mm512_set1_epi8(15);
        let mut four = [[_mm512_setzero_si512(); 4]; 4];
        for (block, u) in blocks.into_iter().zip(&mut four) {
            let qs = block.add(if FIFTH { 48 } else { 16 });
            let (x, y) = (_mm512_loadu_si512(qs.cast()), _mm512_loadu_si512(qs.add(64).cast()));
            let shifted = [x, _mm512_srli_epi16::<4>(x), y, _mm512_srli_epi16::<4>(y)];
            *u = shifted.map(|x| _mm512_and_si512(x, nibble));
            if FIFTH {
                let fifth = _mm512_broadcast_i64x4(_mm256_loadu_si256(block.add(16).cast()));
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
        }
        let [d, dmin] = scales(_mm512_castsi512_si128(_mm512_permutexvar_epi32(first_dwords(), heads)));
        FourBlocks { u: four, words, d, dmin }
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

/// Blocks of Q6_K of four rows. Block: in each half of 128 elements 64 bytes hold the low nibbles, first of 64 elements, then of
/// the other 64; 64 bytes of two more bits follow, 32 a half; 16 signed scales; d.
///
/// # Safety
/// As [`k4_or_k5`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
pub(super) unsafe fn q6_k(blocks: [*const u8; 4]) -> FourBlocks {
    // SAFETY: the caller's promise.
    unsafe {
        let heads = heads(blocks.map(|block| block.add(192)));
        let words = [
            _mm512_cvtepi8_epi16(_mm512_castsi512_si256(heads)),
            _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64::<1>(heads)),
        ];
        let (nibble, two_bits) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
        let mut four = [[_mm512_setzero_si512(); 4]; 4];
        for (block, u) in blocks.into_iter().zip(&mut four) {
            for half in 0..2 {
                let low = _mm512_loadu_si512(block.add(64 * half).cast());
                let high = _mm512_broadcast_i64x4(_mm256_loadu_si256(block.add(128 + 32 * half).cast()));
                let first = _mm512_and_si512(_mm512_sllv_epi16(high, halves(4, 2)), two_bits);
                let second = _mm512_and_si512(_mm512_srlv_epi16(high, halves(0, 2)), two_bits);
                u[2 * half] = _mm512_or_si512(_mm512_and_si512(low, nibble), first);
                u[2 * half + 1] =
                    _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16::<4>(low), nibble), second);
            }
        }
        let [d, _] = scales(dwords(blocks.map(|block| half_bits(block.add(208)))));
        FourBlocks { u: four, words, d, dmin: _mm_setzero_ps() }
    }
}

/// The bits of the f16 at `at`.
///
/// # Safety
/// It is readable.
#[inline(always)]
pub(super) unsafe fn half_bits(at: *const u8) -> u32 {
    // SAFETY: the caller's promise.
    u32::from(unsafe { at.cast::<u16>().read_unaligned() })
}
