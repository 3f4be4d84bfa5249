//! One token against rows of weights, unpacking and multiplying in registers: what the AVX-512 version does, 32 elements at
//! a time, with the same bits. Blocks are taken in the order of their bytes, four at a time, whatever row they belong to:
//! they share the folding of sums, and the memory sees one stream. (Four rows side by side, which share as much, get a
//! third of that from memory on Zen 3, and four fifths where every line is asked for ahead.)
//!
//! Unsigned × signed bytes go through `vpmaddubsw`, whose 16-bit pair sums hold here: u ≤ 63 and |q| ≤ 127, or |w| ≤ 128 as
//! the unsigned operand and q with its sign.

use super::super::layout::TileStep;
use super::super::prefetch::{Asked, Rows, ask};
use super::coded;
use moe_run_graph::quant::Format;
use std::arch::x86_64::*;

/// `out` = the products of as many rows of `inner` elements, one behind the other from `at` on, with a one-token tile of
/// as many elements; false for formats without a kernel here. Bytes are asked for with `HINT` where `asked` says.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C; the rows are readable; `inner` is a whole number of blocks, and the tile has that
/// many elements with their sums and scales, a scale per 256 for super-blocks and per 32 for the others.
#[target_feature(enable = "avx2,fma,f16c")]
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
            Format::Q4K => blocks::<HINT, 144, 256, true>(rows, tile, out, |b, t| k4_or_k5::<false>(b, t)),
            Format::Q5K => blocks::<HINT, 176, 256, true>(rows, tile, out, |b, t| k4_or_k5::<true>(b, t)),
            Format::Q6K => blocks::<HINT, 210, 256, false>(rows, tile, out, |b, t| q6_k(b, t)),
            Format::Q8_0 => blocks::<HINT, 34, 32, false>(rows, tile, out, |b, t| q8_0(b, t)),
            Format::Q4_0 => blocks::<HINT, 18, 32, false>(rows, tile, out, |b, t| q4_0(b, t)),
            other => return coded::dot::<HINT>(other, rows, tile, out),
        }
    }
    true
}

/// A block's activations.
#[derive(Clone, Copy)]
struct Token {
    q: *const i8,
    neg_sums16: *const i32,
    neg_sums32: *const i32,
}

/// A block's sums, spread over lanes, and the bits of its d, with dmin above.
#[derive(Clone, Copy)]
struct Sums {
    products: __m256i,
    minima: __m256i,
    scales: u32,
}

impl Sums {
    /// Of a block without minima, whose d is at `d`.
    ///
    /// # Safety
    /// d is readable.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn new(products: __m256i, d: *const u8) -> Sums {
        // SAFETY: the caller's promise.
        let scales = u32::from(unsafe { d.cast::<u16>().read_unaligned() });
        Sums { products, minima: _mm256_setzero_si256(), scales }
    }
}

/// What four blocks add to their rows' sums, each d times the activations' scale.
struct Terms {
    minima: [f32; 4],
    dmin: [f32; 4],
    products: [f32; 4],
    d: [f32; 4],
}

impl Terms {
    /// `a` are the activations' scales; without `MINIMA` those stay 0.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn new<const MINIMA: bool>(blocks: [Sums; 4], a: [f32; 4]) -> Terms {
        let [d, dmin] = scales(dwords(blocks.map(|block| block.scales)));
        let a = _mm_setr_ps(a[0], a[1], a[2], a[3]);
        let scaled = |d: __m128| lanes(_mm_mul_ps(d, a));
        let folded = |sums: [__m256i; 4]| lanes(_mm_cvtepi32_ps(fold(sums)));
        let none = [0.0; 4];
        Terms {
            minima: if MINIMA { folded(blocks.map(|block| block.minima)) } else { none },
            dmin: if MINIMA { scaled(dmin) } else { none },
            products: folded(blocks.map(|block| block.products)),
            d: scaled(d),
        }
    }

    /// `sum` + the terms of block `i`, in the order that `mul::mul_q8` defines.
    #[inline(always)]
    fn add<const MINIMA: bool>(&self, i: usize, mut sum: f32) -> f32 {
        if MINIMA {
            sum = self.dmin[i].mul_add(self.minima[i], sum);
        }
        self.d[i].mul_add(self.products[i], sum)
    }
}

/// The products of rows of blocks that have `BYTES` and `ELEMS`, with `MINIMA` or without; `block` takes one.
///
/// # Safety
/// As [`dot`].
#[inline(always)]
unsafe fn blocks<const HINT: i32, const BYTES: usize, const ELEMS: usize, const MINIMA: bool>(
    rows: Rows,
    tile: TileStep<'_>,
    out: &mut [f32],
    block: impl Fn(*const u8, Token) -> Sums,
) {
    let Rows { mut at, inner, asked } = rows;
    let per_row = inner / ELEMS;
    let mut left = per_row * out.len();
    let mut out = out.iter_mut();
    // The place in its row of the next block, and of the one behind a block.
    let mut b = 0;
    let behind = |b: usize| if b + 1 == per_row { 0 } else { b + 1 };
    let mut sum = 0.0;
    let mut finish = |sum: &mut f32| {
        if let Some(out) = out.next() {
            *out = std::mem::take(sum);
        }
    };
    // SAFETY: `left` blocks follow from `at` on, and the tile has what goes with each block of a row.
    unsafe {
        let one = |at: *const u8, b: usize| {
            let token = Token {
                q: tile.q.as_ptr().add(ELEMS * b),
                neg_sums16: tile.neg_sums16.as_ptr().add(ELEMS / 16 * b),
                neg_sums32: tile.neg_sums32.as_ptr().add(ELEMS / 32 * b),
            };
            block(at, token)
        };
        let scale = |b: usize| *tile.scale.as_ptr().add(b);
        let four = |at: *const u8, [i, j, k, l]: [usize; 4]| {
            let blocks =
                [one(at, i), one(at.add(BYTES), j), one(at.add(2 * BYTES), k), one(at.add(3 * BYTES), l)];
            Terms::new::<MINIMA>(blocks, [scale(i), scale(j), scale(k), scale(l)])
        };
        while left >= 4 {
            ask::<HINT>(asked.ahead_of(at), 4 * BYTES);
            if b + 4 <= per_row {
                let terms = four(at, [b, b + 1, b + 2, b + 3]);
                for i in 0..4 {
                    sum = terms.add::<MINIMA>(i, sum);
                }
                b += 4;
                if b == per_row {
                    finish(&mut sum);
                    b = 0;
                }
            } else {
                let mut places = [b; 4];
                for i in 1..4 {
                    places[i] = behind(places[i - 1]);
                }
                let terms = four(at, places);
                for (i, place) in places.into_iter().enumerate() {
                    sum = terms.add::<MINIMA>(i, sum);
                    b = behind(place);
                    if b == 0 {
                        finish(&mut sum);
                    }
                }
            }
            at = at.add(4 * BYTES);
            left -= 4;
        }
        while left > 0 {
            let terms = Terms::new::<MINIMA>([one(at, b); 4], [scale(b); 4]);
            sum = terms.add::<MINIMA>(0, sum);
            b = behind(b);
            if b == 0 {
                finish(&mut sum);
            }
            at = at.add(BYTES);
            left -= 1;
        }
    }
}

/// The sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn fold([a, b, c, d]: [__m256i; 4]) -> __m128i {
    let ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    let x = _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x))
}

/// A vector's lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn lanes(x: __m128) -> [f32; 4] {
    let mut lanes = [0.0; 4];
    // SAFETY: 16 bytes.
    unsafe { _mm_storeu_ps(lanes.as_mut_ptr(), x) };
    lanes
}

/// Four blocks' two halves of f16 as floats: those in the low bits, then those above.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub fn scales(bits: __m128i) -> [__m128; 2] {
    let apart = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    let both = _mm256_cvtph_ps(_mm_shuffle_epi8(bits, apart));
    [_mm256_castps256_ps128(both), _mm256_extractf128_ps::<1>(both)]
}

/// Four dwords.
#[inline]
#[target_feature(enable = "avx2")]
pub fn dwords([a, b, c, d]: [u32; 4]) -> __m128i {
    _mm_setr_epi32(a.cast_signed(), b.cast_signed(), c.cast_signed(), d.cast_signed())
}

/// The 6-bit scales of a block of Q4_K or Q5_K, as eight bytes, then its minima, from its first 16 bytes: d, dmin, then
/// three dwords s0, s1, s2. Of the first four, s0 and s1 hold the low six bits of each byte; of the last four, s2 holds
/// the low four bits, the scale's in its low nibble, and s0 and s1 the two above.
#[inline]
#[target_feature(enable = "avx2")]
fn scales_and_mins(head: __m128i) -> __m128i {
    let low = _mm_shuffle_epi8(head, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
    let low = _mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4));
    let low = _mm_and_si128(low, _mm_setr_epi32(0x3f3f_3f3f, 0x0f0f_0f0f, 0x3f3f_3f3f, 0x0f0f_0f0f));
    let high =
        _mm_shuffle_epi8(head, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
    let high = _mm_and_si128(_mm_srli_epi32::<2>(high), _mm_set1_epi8(0x30));
    _mm_or_si128(low, high)
}

/// The sum of eight lanes, halves first.
#[inline]
#[target_feature(enable = "avx2")]
fn fold_floats(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

/// Bytes 0..32 from `at` on.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load<T>(at: *const T) -> __m256i {
    // SAFETY: the caller's promise; no alignment is needed.
    unsafe { _mm256_loadu_si256(at.cast()) }
}

/// Word `i` of each 128 bits, in all their words: `i` as the two bytes' numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn word(x: __m256i, i: usize) -> __m256i {
    _mm256_shuffle_epi8(x, _mm256_set1_epi16(((2 * i) | ((2 * i + 1) << 8)) as i16))
}

/// `sum` + scale · Σ u·q over 32 elements, spread over the lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn add_scaled(sum: __m256i, u: __m256i, q: __m256i, scale: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, q), scale))
}

/// Q4_K and Q5_K (`FIFTH`): Σ scale·(u·q) and Σ min·(−Σq).
///
/// # Safety
/// The block and the token's elements are readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn k4_or_k5<const FIFTH: bool>(block: *const u8, token: Token) -> Sums {
    // SAFETY: the caller's promise.
    unsafe {
        let both = scales_and_mins(_mm_loadu_si128(block.cast()));
        let mins = _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(both, both));
        let scales = _mm256_broadcastsi128_si256(both);
        let nibble = _mm256_set1_epi8(15);
        let qs = block.add(if FIFTH { 48 } else { 16 });
        let fifth = if FIFTH { load(block.add(16)) } else { nibble };
        let mut sum = _mm256_setzero_si256();
        for pair in 0..4 {
            let x = load(qs.add(32 * pair));
            let mut u = [_mm256_and_si256(x, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(x), nibble)];
            for (i, u) in u.iter_mut().enumerate() {
                let s = 2 * pair + i;
                if FIFTH {
                    let bit = _mm256_srl_epi16(fifth, _mm_cvtsi32_si128(s as i32));
                    let bit = _mm256_and_si256(bit, _mm256_set1_epi8(1));
                    *u = _mm256_or_si256(*u, _mm256_slli_epi16::<4>(bit));
                }
                // The scale in the low byte of each word, 0 in the high one.
                let scale = _mm256_shuffle_epi8(scales, _mm256_set1_epi16(i16::MIN | s as i16));
                sum = add_scaled(sum, *u, load(token.q.add(32 * s)), scale);
            }
        }
        Sums {
            products: sum,
            minima: _mm256_mullo_epi32(mins, load(token.neg_sums32)),
            scales: block.cast::<u32>().read_unaligned(),
        }
    }
}

/// Q6_K: Σ scale·(u·q − 32·Σq).
///
/// # Safety
/// As [`k4_or_k5`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q6_k(block: *const u8, token: Token) -> Sums {
    // SAFETY: the caller's promise.
    unsafe {
        let (nibble, two_bits) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
        let scales = _mm_loadu_si128(block.add(192).cast());
        // Even sub-blocks in the low 128 bits, odd ones in the high: one shuffle then serves 32 elements.
        let by_parity = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
        let by_parity = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(scales, by_parity));
        let mut sum = _mm256_setzero_si256();
        for half in 0..2 {
            let first = load(block.add(64 * half));
            let second = load(block.add(64 * half + 32));
            let top = load(block.add(128 + 32 * half));
            let u = [
                (first, _mm256_slli_epi16::<4>(top)),
                (second, _mm256_slli_epi16::<2>(top)),
                (_mm256_srli_epi16::<4>(first), top),
                (_mm256_srli_epi16::<4>(second), _mm256_srli_epi16::<2>(top)),
            ];
            for (quarter, (low, high)) in u.into_iter().enumerate() {
                let u = _mm256_or_si256(_mm256_and_si256(low, nibble), _mm256_and_si256(high, two_bits));
                let i = 4 * half + quarter;
                sum = add_scaled(sum, u, load(token.q.add(32 * i)), word(by_parity, i));
            }
        }
        let high_scales = _mm_unpackhi_epi64(scales, scales);
        let zeros = _mm256_add_epi32(
            _mm256_mullo_epi32(_mm256_cvtepi8_epi32(scales), load(token.neg_sums16)),
            _mm256_mullo_epi32(_mm256_cvtepi8_epi32(high_scales), load(token.neg_sums16.add(8))),
        );
        Sums::new(_mm256_add_epi32(sum, _mm256_slli_epi32::<5>(zeros)), block.add(208))
    }
}

/// Σ w·q over 32 elements with |w| ≤ 128.
///
/// # Safety
/// d is readable at `block`, the token's elements are.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn signed(block: *const u8, w: __m256i, token: Token) -> Sums {
    // SAFETY: the caller's promise.
    unsafe {
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(load(token.q), w));
        Sums::new(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)), block)
    }
}

/// Q8_0.
///
/// # Safety
/// As [`k4_or_k5`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q8_0(block: *const u8, token: Token) -> Sums {
    // SAFETY: the caller's promise.
    unsafe { signed(block, load(block.add(2)), token) }
}

/// Q4_0: low nibbles, then high ones, less 8.
///
/// # Safety
/// As [`k4_or_k5`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4_0(block: *const u8, token: Token) -> Sums {
    // SAFETY: the caller's promise.
    unsafe {
        let x = _mm_loadu_si128(block.add(2).cast());
        let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(x), _mm_srli_epi16::<4>(x));
        let u = _mm256_and_si256(both, _mm256_set1_epi8(15));
        signed(block, _mm256_sub_epi8(u, _mm256_set1_epi8(8)), token)
    }
}

/// As [`dot`], for F32, F16 and BF16 against `inner` floats `x`, summed in f64 if `wide`; false for other formats.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C; the rows are readable, and so are `inner` elements of `x`.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn dot_floats<const HINT: i32>(
    format: Format,
    at: *const u8,
    inner: usize,
    x: *const f32,
    wide: bool,
    asked: Asked,
    out: &mut [f32],
) -> bool {
    let rows = Rows { at, inner, asked };
    let f32s = |at: *const u8| {
        // SAFETY: called for 32 readable bytes.
        unsafe { _mm256_loadu_ps(at.cast()) }
    };
    let f16s = |at: *const u8| {
        // SAFETY: called for 16 readable bytes.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    };
    let bf16s = |at: *const u8| {
        // SAFETY: called for 16 readable bytes.
        let wide = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(at.cast()) });
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    };
    // SAFETY: the caller's promise.
    unsafe {
        match (format, wide) {
            (Format::F32, false) => floats::<HINT, 4>(rows, x, out, f32s),
            (Format::F16, false) => floats::<HINT, 2>(rows, x, out, f16s),
            (Format::Bf16, false) => floats::<HINT, 2>(rows, x, out, bf16s),
            (Format::F32, true) => doubles::<HINT, 4>(rows, x, out, f32s),
            (Format::F16, true) => doubles::<HINT, 2>(rows, x, out, f16s),
            (Format::Bf16, true) => doubles::<HINT, 2>(rows, x, out, bf16s),
            _ => return false,
        }
    }
    true
}

/// The last few elements of a row and of `x`, with zeros to make 8.
///
/// # Safety
/// `count` elements, at most 8, of `BYTES` bytes are readable.
#[inline]
unsafe fn rest<const BYTES: usize>(at: *const u8, x: *const f32, count: usize) -> ([u8; 32], [f32; 8]) {
    let (mut w, mut rest) = ([0u8; 32], [0.0f32; 8]);
    // SAFETY: the caller's promise; 8 elements have 32 bytes at most.
    unsafe {
        std::ptr::copy_nonoverlapping(at, w.as_mut_ptr(), count * BYTES);
        std::ptr::copy_nonoverlapping(x, rest.as_mut_ptr(), count);
    }
    (w, rest)
}

/// For each row, Σ w·x in four vectors of partial sums. `load` gives 8 elements.
///
/// # Safety
/// As [`dot_floats`]; `BYTES` are an element's.
#[inline(always)]
unsafe fn floats<const HINT: i32, const BYTES: usize>(
    rows: Rows,
    x: *const f32,
    out: &mut [f32],
    load: impl Fn(*const u8) -> __m256,
) {
    let Rows { mut at, inner, asked } = rows;
    for row in out {
        // SAFETY: elements below `inner` exist in the row and in `x`; the last few go through buffers of 8.
        unsafe {
            let mut sums = [_mm256_setzero_ps(); 4];
            let mut k = 0;
            while k + 32 <= inner {
                ask::<HINT>(asked.ahead_of(at.add(k * BYTES)), 32 * BYTES);
                for (i, sum) in sums.iter_mut().enumerate() {
                    let k = k + 8 * i;
                    *sum = _mm256_fmadd_ps(load(at.add(k * BYTES)), _mm256_loadu_ps(x.add(k)), *sum);
                }
                k += 32;
            }
            while k < inner {
                let (w, rest) = rest::<BYTES>(at.add(k * BYTES), x.add(k), (inner - k).min(8));
                sums[0] = _mm256_fmadd_ps(load(w.as_ptr()), _mm256_loadu_ps(rest.as_ptr()), sums[0]);
                k += 8;
            }
            let [a, b, c, d] = sums;
            *row = fold_floats(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)));
            at = at.add(inner * BYTES);
        }
    }
}

/// For each row, Σ w·x in f64. `load` gives 8 elements.
///
/// # Safety
/// As [`floats`].
#[inline(always)]
unsafe fn doubles<const HINT: i32, const BYTES: usize>(
    rows: Rows,
    x: *const f32,
    out: &mut [f32],
    load: impl Fn(*const u8) -> __m256,
) {
    let Rows { mut at, inner, asked } = rows;
    // Adds the products of 8 elements.
    let add = |sums: [__m256d; 2], w: __m256, x: __m256| {
        // SAFETY: AVX2 and FMA are there.
        unsafe {
            let (w_high, x_high) = (_mm256_extractf128_ps::<1>(w), _mm256_extractf128_ps::<1>(x));
            let (w_low, x_low) = (_mm256_castps256_ps128(w), _mm256_castps256_ps128(x));
            [
                _mm256_fmadd_pd(_mm256_cvtps_pd(w_low), _mm256_cvtps_pd(x_low), sums[0]),
                _mm256_fmadd_pd(_mm256_cvtps_pd(w_high), _mm256_cvtps_pd(x_high), sums[1]),
            ]
        }
    };
    for row in out {
        // SAFETY: elements below `inner` exist in the row and in `x`; the last few go through buffers of 8.
        unsafe {
            let mut sums = [_mm256_setzero_pd(); 2];
            let whole = inner / 8 * 8;
            for k in (0..whole).step_by(8) {
                // Once a line.
                if (k * BYTES).is_multiple_of(64) {
                    ask::<HINT>(asked.ahead_of(at.add(k * BYTES)), 64);
                }
                sums = add(sums, load(at.add(k * BYTES)), _mm256_loadu_ps(x.add(k)));
            }
            if whole < inner {
                let (w, rest) = rest::<BYTES>(at.add(whole * BYTES), x.add(whole), inner - whole);
                sums = add(sums, load(w.as_ptr()), _mm256_loadu_ps(rest.as_ptr()));
            }
            let mut lanes = [0.0; 4];
            _mm256_storeu_pd(lanes.as_mut_ptr(), _mm256_add_pd(sums[0], sums[1]));
            *row = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) as f32;
            at = at.add(inner * BYTES);
        }
    }
}
