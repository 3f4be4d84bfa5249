//! The codes of the formats whose rows come from grids, of the ternary ones, and of those in blocks of 64 and 128 elements:
//! what products and panels are made of. Grids lie in the first-level cache, an entry a load; signs are spread 32 at a time.
//!
//! Codes are signed bytes, 32 elements a vector, in the order of the elements. The scales of a super-block's sub-blocks are
//! words: those of the even sixteens of elements, then those of the odd ones.

use moe_run_graph::quant::{grids, nvfp4};
use std::arch::x86_64::*;

/// The codes of a block, `N` · 32 elements.
pub type Codes<const N: usize> = [__m256i; N];

/// A number from `at` on.
///
/// # Safety
/// It is readable.
#[inline(always)]
unsafe fn number<T: Copy>(at: *const u8) -> T {
    // SAFETY: the caller's promise; types here are unsigned integers.
    unsafe { at.cast::<T>().read_unaligned() }
}

/// Bytes 0..16 from `at` on.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load16(at: *const u8) -> __m128i {
    // SAFETY: the caller's promise; no alignment is needed.
    unsafe { _mm_loadu_si128(at.cast()) }
}

/// Bytes 0..32 from `at` on.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load32(at: *const u8) -> __m256i {
    // SAFETY: the caller's promise; no alignment is needed.
    unsafe { _mm256_loadu_si256(at.cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn entries(rows: [u64; 4]) -> __m256i {
    let [a, b, c, d] = rows.map(u64::cast_signed);
    _mm256_setr_epi64x(a, b, c, d)
}

/// Four signs of eight, from seven each: bits 7k to 7k + 6 become byte k, whose last bit makes the number of set bits even.
#[inline(always)]
fn even_signs(bits: u32) -> u32 {
    let seven = bits & 0x7f | bits << 1 & 0x7f00 | bits << 2 & 0x007f_0000 | bits << 3 & 0x7f00_0000;
    // Bit 0 of each byte becomes the sum of the byte's bits; what leaks from the byte above stays in the upper half.
    let sum = seven ^ seven >> 4;
    let sum = sum ^ sum >> 2;
    let sum = (sum ^ sum >> 1) & 0x0101_0101;
    seven | sum << 7
}

/// All bits of each byte whose bit is set.
#[inline]
#[target_feature(enable = "avx2")]
fn spread(bits: u32) -> __m256i {
    let which = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let each = _mm256_set1_epi64x(0x8040_2010_0804_0201u64.cast_signed());
    let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits.cast_signed()), which);
    _mm256_cmpeq_epi8(_mm256_and_si256(bytes, each), each)
}

/// `x`, negative where the bit is set.
#[inline]
#[target_feature(enable = "avx2")]
fn signed(x: __m256i, signs: u32) -> __m256i {
    let minus = spread(signs);
    _mm256_sub_epi8(_mm256_xor_si256(x, minus), minus)
}

/// 2·x + 1 of each word.
#[inline]
#[target_feature(enable = "avx2")]
fn odd(x: __m256i) -> __m256i {
    _mm256_add_epi16(_mm256_add_epi16(x, x), _mm256_set1_epi16(1))
}

/// Eight dwords as words, once for the even sixteens and once for the odd.
#[inline]
#[target_feature(enable = "avx2")]
fn twice(x: __m256i) -> __m256i {
    _mm256_permute4x64_epi64::<0x88>(_mm256_packus_epi32(x, x))
}

/// The nibbles of eight bytes: low ones are the even sixteens' scales, high ones the odd sixteens'.
#[inline]
#[target_feature(enable = "avx2")]
fn nibble_pairs(x: u64) -> __m256i {
    let x = _mm_cvtsi64_si128(x.cast_signed());
    let nibble = _mm_set1_epi8(15);
    let both = _mm_unpacklo_epi64(_mm_and_si128(x, nibble), _mm_and_si128(_mm_srli_epi16::<4>(x), nibble));
    _mm256_cvtepu8_epi16(both)
}

/// IQ2_XXS.
///
/// # Safety
/// A block of 66 bytes is readable.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn iq2_xxs(block: *const u8) -> (Codes<8>, __m256i) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut codes = [_mm256_setzero_si256(); 8];
        for (g, to) in codes.iter_mut().enumerate() {
            let (rows, bits) = (number::<u32>(block.add(2 + 8 * g)), number::<u32>(block.add(6 + 8 * g)));
            let rows = rows.to_le_bytes().map(|row| grids::IQ2_XXS[usize::from(row)]);
            *to = signed(entries(rows), even_signs(bits));
        }
        // The second dword of each eight bytes.
        let (low, high) = (load32(block.add(2)), load32(block.add(34)));
        let bits = _mm256_shuffle_ps::<0xdd>(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high));
        let bits = _mm256_permute4x64_epi64::<0xd8>(_mm256_castps_si256(bits));
        (codes, odd(twice(_mm256_srli_epi32::<28>(bits))))
    }
}

/// IQ2_XS.
///
/// # Safety
/// A block of 74 bytes is readable.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn iq2_xs(block: *const u8) -> (Codes<8>, __m256i) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut codes = [_mm256_setzero_si256(); 8];
        for (g, to) in codes.iter_mut().enumerate() {
            let packed = number::<u64>(block.add(2 + 8 * g));
            let part = |k: u32| (packed >> (16 * k)) as u32 & 0xffff;
            let rows = [0, 1, 2, 3].map(|k| grids::IQ2_XS[part(k) as usize & 511]);
            let signs = part(0) >> 9 | part(1) >> 9 << 7 | part(2) >> 9 << 14 | part(3) >> 9 << 21;
            *to = signed(entries(rows), even_signs(signs));
        }
        (codes, odd(nibble_pairs(number(block.add(66)))))
    }
}

/// IQ2_S.
///
/// # Safety
/// A block of 82 bytes is readable.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn iq2_s(block: *const u8) -> (Codes<8>, __m256i) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut codes = [_mm256_setzero_si256(); 8];
        for (g, to) in codes.iter_mut().enumerate() {
            let low = number::<u32>(block.add(2 + 4 * g)).to_le_bytes();
            let high = usize::from(*block.add(66 + g));
            let row = |k: usize| grids::IQ2_S[usize::from(low[k]) | (high >> (2 * k) & 3) << 8];
            *to = signed(entries([row(0), row(1), row(2), row(3)]), number(block.add(34 + 4 * g)));
        }
        (codes, odd(nibble_pairs(number(block.add(74)))))
    }
}

/// Eight entries of four.
#[inline]
#[target_feature(enable = "avx2")]
fn short_entries(rows: [u32; 8]) -> __m256i {
    let [a, b, c, d, e, f, g, h] = rows.map(u32::cast_signed);
    _mm256_setr_epi32(a, b, c, d, e, f, g, h)
}

/// IQ3_XXS.
///
/// # Safety
/// A block of 98 bytes is readable.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn iq3_xxs(block: *const u8) -> (Codes<8>, __m256i) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut codes = [_mm256_setzero_si256(); 8];
        for (g, to) in codes.iter_mut().enumerate() {
            let rows = number::<u64>(block.add(2 + 8 * g)).to_le_bytes();
            let rows = rows.map(|row| grids::IQ3_XXS[usize::from(row)]);
            *to = signed(short_entries(rows), even_signs(number(block.add(66 + 4 * g))));
        }
        (codes, odd(twice(_mm256_srli_epi32::<28>(load32(block.add(66))))))
    }
}

/// IQ3_S.
///
/// # Safety
/// A block of 110 bytes is readable.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn iq3_s(block: *const u8) -> (Codes<8>, __m256i) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut codes = [_mm256_setzero_si256(); 8];
        for (g, to) in codes.iter_mut().enumerate() {
            let low = number::<u64>(block.add(2 + 8 * g)).to_le_bytes();
            let high = usize::from(*block.add(66 + g));
            let row = |k: usize| grids::IQ3_S[usize::from(low[k]) | (high >> k & 1) << 8];
            let rows = [row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)];
            *to = signed(short_entries(rows), number(block.add(74 + 4 * g)));
        }
        let packed = u64::from(number::<u32>(block.add(106)));
        // Nibbles in order, a byte each: byte i to byte 2i, its high nibble to byte 2i + 1.
        let x = _mm_cvtsi64_si128(packed.cast_signed());
        let nibbles = _mm_and_si128(_mm_unpacklo_epi8(x, _mm_srli_epi16::<4>(x)), _mm_set1_epi8(15));
        let scales = _mm_cvtepu8_epi16(nibbles);
        (codes, odd(_mm256_broadcastsi128_si256(scales)))
    }
}

/// IQ1_S.
///
/// # Safety
/// A block of 50 bytes is readable.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn iq1_s(block: *const u8) -> (Codes<8>, __m256i) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut codes = [_mm256_setzero_si256(); 8];
        for (g, to) in codes.iter_mut().enumerate() {
            let low = number::<u32>(block.add(2 + 4 * g)).to_le_bytes();
            let bits = usize::from(number::<u16>(block.add(34 + 2 * g)));
            let row = |k: usize| grids::IQ1[usize::from(low[k]) | (bits >> (3 * k) & 7) << 8];
            let eighth = if bits >> 15 == 1 { -1 } else { 1 };
            *to = _mm256_add_epi8(entries([row(0), row(1), row(2), row(3)]), _mm256_set1_epi8(eighth));
        }
        let scales = _mm_and_si128(_mm_srli_epi16::<12>(load16(block.add(34))), _mm_set1_epi16(7));
        (codes, odd(_mm256_broadcastsi128_si256(scales)))
    }
}

/// IQ1_M.
///
/// # Safety
/// A block of 56 bytes is readable.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn iq1_m(block: *const u8) -> (Codes<8>, __m256i) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut codes = [_mm256_setzero_si256(); 8];
        for (g, to) in codes.iter_mut().enumerate() {
            let low = number::<u32>(block.add(4 * g)).to_le_bytes();
            let bits = usize::from(number::<u16>(block.add(32 + 2 * g)));
            let row = |k: usize| grids::IQ1[usize::from(low[k]) | (bits >> (4 * k) & 7) << 8];
            // Eight times −1 where the bit is set, eight times 1 where it is not.
            let eighth =
                |k: usize| 0x0101_0101_0101_0101 | 0u64.wrapping_sub((bits >> (4 * k + 3) & 1) as u64);
            let eighths = entries([eighth(0), eighth(1), eighth(2), eighth(3)]);
            *to = _mm256_add_epi8(entries([row(0), row(1), row(2), row(3)]), eighths);
        }
        // Word j holds the scales of sixteens 4j to 4j + 3, three bits each: moved to the top of a word of their own.
        let packed = _mm256_set1_epi64x(number::<u64>(block.add(48)).cast_signed());
        let which = _mm_setr_epi8(0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7);
        let words = _mm256_shuffle_epi8(packed, _mm256_broadcastsi128_si256(which));
        let (even, uneven) = (0x0080_2000, 0x0010_0400); // times 2^13, 2^7; times 2^10, 2^4
        let by = _mm256_setr_epi32(even, even, even, even, uneven, uneven, uneven, uneven);
        (codes, odd(_mm256_srli_epi16::<13>(_mm256_mullo_epi16(words, by))))
    }
}

/// Three times each byte, modulo 256.
#[inline]
#[target_feature(enable = "avx2")]
fn tripled(x: __m128i) -> __m128i {
    _mm_add_epi8(_mm_add_epi8(x, x), x)
}

/// The first digit of each byte of TQ1_0, less 1: (3·x) / 256 is 0 below 86, 1 below 171, else 2.
#[inline]
#[target_feature(enable = "avx2")]
fn first_digit(x: __m256i) -> __m256i {
    let reaches = |limit: u8| _mm256_cmpeq_epi8(_mm256_max_epu8(x, _mm256_set1_epi8(limit.cast_signed())), x);
    _mm256_sub_epi8(_mm256_sub_epi8(_mm256_set1_epi8(-1), reaches(86)), reaches(171))
}

/// TQ1_0.
///
/// # Safety
/// A block of 54 bytes is readable.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn tq1_0(block: *const u8) -> (Codes<8>, __m256i) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut x = load32(block);
        let mut codes = [x; 8];
        for codes in &mut codes[..5] {
            *codes = first_digit(x);
            x = _mm256_add_epi8(_mm256_add_epi8(x, x), x);
        }
        let mut short = [load16(block.add(32)); 5];
        let mut four = [_mm_set1_epi32(number::<u32>(block.add(48)).cast_signed()); 4];
        for n in 1..5 {
            short[n] = tripled(short[n - 1]);
        }
        for n in 1..4 {
            four[n] = tripled(four[n - 1]);
        }
        let last = _mm_blend_epi32::<0b1100>(
            _mm_blend_epi32::<0b10>(four[0], four[1]),
            _mm_blend_epi32::<0b1000>(four[2], four[3]),
        );
        codes[5] = first_digit(_mm256_set_m128i(short[1], short[0]));
        codes[6] = first_digit(_mm256_set_m128i(short[3], short[2]));
        codes[7] = first_digit(_mm256_set_m128i(last, short[4]));
        (codes, _mm256_set1_epi16(1))
    }
}

/// TQ2_0.
///
/// # Safety
/// A block of 66 bytes is readable.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn tq2_0(block: *const u8) -> (Codes<8>, __m256i) {
    // SAFETY: the caller's promise.
    unsafe {
        let halves = [load32(block), load32(block.add(32))];
        let mut codes = [_mm256_setzero_si256(); 8];
        for (g, to) in codes.iter_mut().enumerate() {
            let x = _mm256_srl_epi16(halves[g / 4], _mm_cvtsi32_si128(2 * (g % 4) as i32));
            *to = _mm256_sub_epi8(_mm256_and_si256(x, _mm256_set1_epi8(3)), _mm256_set1_epi8(1));
        }
        (codes, _mm256_set1_epi16(1))
    }
}

/// NVFP4: twice the floats.
///
/// # Safety
/// A block of 36 bytes is readable.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn nvfp4(block: *const u8) -> Codes<2> {
    // SAFETY: the caller's promise.
    unsafe {
        let table =
            _mm256_broadcastsi128_si256(_mm_loadu_si128(moe_run_graph::quant::mxfp4::TABLE.as_ptr().cast()));
        let mut codes = [_mm256_setzero_si256(); 2];
        for (g, to) in codes.iter_mut().enumerate() {
            let (x, nibble) = (load16(block.add(4 + 16 * g)), _mm_set1_epi8(15));
            let (low, high) = (_mm_and_si128(x, nibble), _mm_and_si128(_mm_srli_epi16::<4>(x), nibble));
            let which = _mm256_set_m128i(_mm_unpackhi_epi64(low, high), _mm_unpacklo_epi64(low, high));
            *to = _mm256_shuffle_epi8(table, which);
        }
        codes
    }
}

/// Half the scales of a block of NVFP4.
///
/// # Safety
/// 4 bytes are readable.
#[inline(always)]
pub unsafe fn nvfp4_scales(block: *const u8) -> [f32; 4] {
    // SAFETY: the caller's promise.
    unsafe { number::<u32>(block) }.to_le_bytes().map(|bits| nvfp4::HALF_SCALES[usize::from(bits)])
}

/// Q1_0.
///
/// # Safety
/// A block of 18 bytes is readable.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn q1_0(block: *const u8) -> Codes<4> {
    let mut codes = [_mm256_setzero_si256(); 4];
    for (g, to) in codes.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let plus = unsafe { spread(number(block.add(2 + 4 * g))) };
        *to = _mm256_sub_epi8(_mm256_set1_epi8(-1), _mm256_add_epi8(plus, plus));
    }
    codes
}

/// Q2_0.
///
/// # Safety
/// A block of 18 bytes is readable.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn q2_0(block: *const u8) -> Codes<2> {
    let mut codes = [_mm256_setzero_si256(); 2];
    for (g, to) in codes.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let bytes = unsafe { _mm_loadl_epi64(block.add(2 + 8 * g).cast()) };
        // Each byte in a dword of its own, its bits 2k and 2k + 1 at the foot of byte k.
        let x = _mm256_cvtepu8_epi32(bytes);
        let x = _mm256_or_si256(x, _mm256_slli_epi32::<6>(x));
        let x = _mm256_or_si256(x, _mm256_slli_epi32::<12>(x));
        *to = _mm256_sub_epi8(_mm256_and_si256(x, _mm256_set1_epi8(3)), _mm256_set1_epi8(1));
    }
    codes
}
