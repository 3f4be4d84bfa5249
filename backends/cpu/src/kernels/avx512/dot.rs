//! One token against rows of weights, unpacking and multiplying in registers: the decode step's kernels. Rows are walked
//! from their first byte to their last, four side by side at most, so that a matrix is read nearly as one stream; every
//! line is asked for ahead, at least four rows ahead, since hardware streams do not follow four rows at once.
//!
//! Integer sums are exact inside a block, scales of sub-blocks included; floats are summed once a block, first to last, as
//! `mul::mul_q8` defines it. Formats whose codes are looked up go through AVX2's kernels: the looking up is what takes time.

use super::super::avx2::coded;
use super::super::avx2::dot::{scales, scales_and_mins as packed_scales_and_mins};
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
            Format::Q4K => super_blocks::<HINT, 144, true>(rows, tile, out, |b| k4_or_k5::<false>(b)),
            Format::Q5K => super_blocks::<HINT, 176, true>(rows, tile, out, |b| k4_or_k5::<true>(b)),
            Format::Q6K => super_blocks::<HINT, 210, false>(rows, tile, out, |b| q6_k(b)),
            Format::Q8_0 => pairs_of_blocks::<HINT, 34>(rows, tile, out, |b| q8_0(b), 128),
            Format::Q4_0 => pairs_of_blocks::<HINT, 18>(rows, tile, out, |b| nibbles(b.add(2)), 8),
            other => return coded::dot::<HINT>(other, rows, tile, out),
        }
    }
    true
}

/// A super-block's activations.
#[derive(Clone, Copy)]
pub(super) struct Token {
    q: *const i8,
    /// −Σq of 16 elements, as words.
    neg_sums16: __m256i,
    /// −Σq of 32 elements, as words.
    neg_sums32: __m128i,
}

impl Token {
    /// Those of super-block `i` of a one-token tile.
    ///
    /// # Safety
    /// The tile has that many.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn of(tile: &TileStep<'_>, i: usize) -> Token {
        // SAFETY: the caller's promise; no load needs alignment.
        unsafe {
            let neg_sums = (tile.neg_sums16.as_ptr().add(16 * i), tile.neg_sums32.as_ptr().add(8 * i));
            Token {
                q: tile.q.as_ptr().add(256 * i),
                neg_sums16: _mm512_cvtepi32_epi16(_mm512_loadu_si512(neg_sums.0.cast())),
                neg_sums32: _mm256_cvtepi32_epi16(_mm256_loadu_si256(neg_sums.1.cast())),
            }
        }
    }
}

/// A super-block of weights, unpacked.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// Elements in order, 64 a vector, below 64 each.
    u: [__m512i; 4],
    /// Their scales, as [`spread`] gives them.
    scales: [__m512i; 2],
    /// With minima: those, of 32 elements each, as words.
    minima: __m128i,
    /// Without: the scales of 16 elements each, as words.
    scales16: __m256i,
    /// The bits of d, with dmin above.
    pub(super) d: u32,
}

/// A block's sums, spread over lanes.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) products: __m512i,
    pub(super) minima: __m128i,
}

impl Block {
    /// Σ scale·(u·q) and Σ min·(−Σq); without `MINIMA` Σ scale·(u·q − 32·Σq).
    ///
    /// # Safety
    /// The token's elements are readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn times<const MINIMA: bool>(&self, token: Token) -> Sums {
        // SAFETY: the caller's promise.
        let products = unsafe { scaled(self.u, token.q, self.scales) };
        if MINIMA {
            return Sums { products, minima: _mm_madd_epi16(self.minima, token.neg_sums32) };
        }
        let zero = _mm256_slli_epi32::<5>(_mm256_madd_epi16(self.scales16, token.neg_sums16));
        let products = _mm512_add_epi32(products, _mm512_zextsi256_si512(zero));
        Sums { products, minima: _mm_setzero_si128() }
    }
}

/// For each of four vectors the sum of the lanes in its lower half, and in its upper half.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
pub(super) fn fold_halves([a, b, c, d]: [__m512i; 4]) -> [__m128i; 2] {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    let x = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    [both_halves(_mm512_castsi512_si256(x)), both_halves(_mm512_extracti64x4_epi64::<1>(x))]
}

/// The sum of both halves.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn both_halves(x: __m256i) -> __m128i {
    _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x))
}

/// The sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
pub(super) fn fold_small([a, b, c, d]: [__m128i; 4]) -> __m128i {
    let ab = _mm_add_epi32(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
    let cd = _mm_add_epi32(_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
    _mm_add_epi32(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd))
}

/// `sum` + `ints` · (`d` · `a`), row by row.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,fma")]
pub(super) fn add_scaled(sum: __m128, ints: __m128i, d: __m128, a: f32) -> __m128 {
    _mm_fmadd_ps(_mm_mul_ps(d, _mm_set1_ps(a)), _mm_cvtepi32_ps(ints), sum)
}

/// [`dot`] for formats in super-blocks of `BYTES` bytes, with `MINIMA` or without; `block` takes one.
///
/// # Safety
/// As [`dot`].
#[inline(always)]
unsafe fn super_blocks<const HINT: i32, const BYTES: usize, const MINIMA: bool>(
    rows: Rows,
    tile: TileStep<'_>,
    out: &mut [f32],
    block: impl Fn(*const u8) -> Block,
) {
    let Rows { at, inner, .. } = rows;
    let row_bytes = inner / 256 * BYTES;
    for (i, out) in out.chunks_mut(4).enumerate() {
        // SAFETY: blocks below `inner / 256` exist in each of the rows and in the tile; rows that do not exist stand for
        // the first, and their sums are dropped.
        unsafe {
            let row = |r: usize| at.add((4 * i + if r < out.len() { r } else { 0 }) * row_bytes);
            let (mut a, mut b, mut c, mut d) = (row(0), row(1), row(2), row(3));
            let distance = rows.distance(a, row_bytes);
            let mut sum = _mm_setzero_ps();
            for (i, scale) in tile.scale[..inner / 256].iter().enumerate() {
                let token = Token::of(&tile, i);
                let sums_of = |at: *const u8| {
                    ask::<HINT>(at.wrapping_offset(distance), BYTES);
                    let block = block(at);
                    (block.times::<MINIMA>(token), block.d)
                };
                let ((first, d0), (second, d1)) = (sums_of(a), sums_of(b));
                let ((third, d2), (fourth, d3)) = (sums_of(c), sums_of(d));
                (a, b, c, d) = (a.add(BYTES), b.add(BYTES), c.add(BYTES), d.add(BYTES));
                let [d, dmin] = scales([d0, d1, d2, d3]);
                if MINIMA {
                    let minima = fold_small([first.minima, second.minima, third.minima, fourth.minima]);
                    sum = add_scaled(sum, minima, dmin, *scale);
                }
                let halves = fold_halves([first.products, second.products, third.products, fourth.products]);
                sum = add_scaled(sum, _mm_add_epi32(halves[0], halves[1]), d, *scale);
            }
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), sum);
            store(sums, out);
        }
    }
}

/// As many of the four as there is room for.
#[inline(always)]
pub(super) fn store(sums: [f32; 4], out: &mut [f32]) {
    match out.first_chunk_mut::<4>() {
        Some(out) => *out = sums,
        None => out.copy_from_slice(&sums[..out.len()]),
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

/// Σ_sub scale · Σ u·q of a super-block, spread over the lanes. `u` are 4 × 64 elements in order, below 64 each, `scales` what
/// [`spread`] gives.
///
/// Four products make a dword that 16 bits can hold (4 · 63 · 127), so two vectors become one before the scales.
///
/// # Safety
/// As [`dot`]; `q` has 256 elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn scaled(u: [__m512i; 4], q: *const i8, scales: [__m512i; 2]) -> __m512i {
    // SAFETY: the caller's promise; no load needs alignment.
    unsafe {
        let (zero, mut sum) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        for pair in 0..2 {
            let load = |i: usize| _mm512_loadu_si512(q.add(64 * i).cast());
            let a = _mm512_dpbusd_epi32(zero, u[2 * pair], load(2 * pair));
            let b = _mm512_dpbusd_epi32(zero, u[2 * pair + 1], load(2 * pair + 1));
            sum = _mm512_dpwssd_epi32(sum, _mm512_packs_epi32(a, b), scales[pair]);
        }
        sum
    }
}

/// The scales of a super-block, one for each 16 elements, with `REPEAT` 2 one for each 32, where [`scaled`]'s packed vectors have
/// their elements: 128 bits of one hold 16 elements of its first vector, then 16 of the second, as 4 words each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn spread<const REPEAT: usize>(scales: __m256i) -> [__m512i; 2] {
    let sub_blocks = const { &[sub_blocks(0, REPEAT), sub_blocks(1, REPEAT)] };
    let scales = _mm512_castsi256_si512(scales);
    // SAFETY: 64 bytes each; no load needs alignment.
    let which = |pair: usize| unsafe { _mm512_loadu_si512(sub_blocks[pair].as_ptr().cast()) };
    [_mm512_permutexvar_epi16(which(0), scales), _mm512_permutexvar_epi16(which(1), scales)]
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

/// A block of Q4_K or Q5_K (`FIFTH`). Block: d, dmin, 12 bytes of 6-bit scales and minima, with `FIFTH` 32 bytes whose bit s belongs to sub-block s, then 32 bytes for each two
/// sub-blocks.
///
/// # Safety
/// It is readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn k4_or_k5<const FIFTH: bool>(block: *const u8) -> Block {
    // SAFETY: the caller's promise.
    unsafe {
        let head = _mm_loadu_si128(block.cast());
        let (scales, mins) = scales_and_mins(head);
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
        Block {
            u,
            scales: spread::<2>(_mm256_castsi128_si256(scales)),
            minima: mins,
            scales16: _mm256_setzero_si256(),
            d: block.cast::<u32>().read_unaligned(),
        }
    }
}

/// The 6-bit scales and minima of a block of Q4_K or Q5_K, as words, from its first 16 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn scales_and_mins(head: __m128i) -> (__m128i, __m128i) {
    let both = packed_scales_and_mins(head);
    (_mm_cvtepu8_epi16(both), _mm_cvtepu8_epi16(_mm_unpackhi_epi64(both, both)))
}

/// A block of Q6_K. Block: in each half of 128 elements 64 bytes hold the low nibbles, first of 64
/// elements, then of the other 64; 64 bytes of two more bits follow, 32 a half; 16 signed scales; d.
///
/// # Safety
/// As [`k4_or_k5`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn q6_k(block: *const u8) -> Block {
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
            u[2 * half + 1] = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16::<4>(low), nibble), second);
        }
        let scales = _mm256_cvtepi8_epi16(_mm_loadu_si128(block.add(192).cast()));
        Block {
            u,
            scales: spread::<1>(scales),
            minima: _mm_setzero_si128(),
            scales16: scales,
            d: half_bits(block.add(208)),
        }
    }
}

/// Q8_0's elements of a block, plus 128.
///
/// # Safety
/// The block is readable.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
pub(super) unsafe fn q8_0(block: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    _mm256_xor_si256(unsafe { _mm256_loadu_si256(block.add(2).cast()) }, _mm256_set1_epi8(i8::MIN))
}

/// 32 elements from 16 bytes: the low nibbles, then the high ones.
///
/// # Safety
/// The bytes are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn nibbles(at: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    let x = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(at.cast()) });
    let by = _mm256_inserti128_si256::<1>(_mm256_setzero_si256(), _mm_set1_epi16(4));
    _mm256_and_si256(_mm256_srlv_epi16(x, by), _mm256_set1_epi8(15))
}

/// [`dot`] for formats in blocks of 32 elements and `BYTES` bytes that begin with d: Σ d · a · (u·q − zero·Σq), two
/// blocks at a time. `elements` gives a block's u.
///
/// # Safety
/// As [`dot`].
#[inline(always)]
unsafe fn pairs_of_blocks<const HINT: i32, const BYTES: usize>(
    rows: Rows,
    tile: TileStep<'_>,
    out: &mut [f32],
    elements: impl Fn(*const u8) -> __m256i,
    zero: u8,
) {
    let Rows { at, inner, .. } = rows;
    let (blocks, row_bytes) = (inner / 32, inner / 32 * BYTES);
    for (i, out) in out.chunks_mut(4).enumerate() {
        // SAFETY: as in `super_blocks`; of the last block of an odd number, the half that would lie behind it is zeros.
        unsafe {
            let row = |r: usize| at.add((4 * i + if r < out.len() { r } else { 0 }) * row_bytes);
            let distance = rows.distance(row(0), row_bytes);
            let mut rows = [row(0), row(1), row(2), row(3)];
            let mut sum = _mm_setzero_ps();
            let (mut ints, mut halves) = ([_mm512_setzero_si512(); 4], [0; 4]);
            let (mut q, mut scale) = (tile.q.as_ptr(), tile.scale.as_ptr());
            for _ in 0..blocks / 2 {
                let x = Pair::new(_mm512_loadu_si512(q.cast()), zero);
                for (r, at) in rows.iter_mut().enumerate() {
                    ask::<HINT>(at.wrapping_offset(distance), 2 * BYTES);
                    let second = at.add(BYTES);
                    let u = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(elements(*at)), elements(second));
                    ints[r] = x.times(u);
                    halves[r] = half_bits(*at) | half_bits(second) << 16;
                    *at = second.add(BYTES);
                }
                let (sums, d) = (fold_halves(ints), scales(halves));
                sum = add_scaled(sum, sums[0], d[0], *scale);
                sum = add_scaled(sum, sums[1], d[1], *scale.add(1));
                (q, scale) = (q.add(64), scale.add(2));
            }
            if blocks % 2 == 1 {
                let x = Pair::new(_mm512_zextsi256_si512(_mm256_loadu_si256(q.cast())), zero);
                for (r, at) in rows.into_iter().enumerate() {
                    ints[r] = x.times(_mm512_zextsi256_si512(elements(at)));
                    halves[r] = half_bits(at);
                }
                sum = add_scaled(sum, fold_halves(ints)[0], scales(halves)[0], *scale);
            }
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), sum);
            store(sums, out);
        }
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

/// The activations of two blocks of 32: what all rows share.
#[derive(Clone, Copy)]
pub(super) struct Pair {
    q: __m512i,
    /// −zero · Σq of four elements, for each four.
    offsets: __m512i,
}

impl Pair {
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn new(q: __m512i, zero: u8) -> Pair {
        let none = _mm512_setzero_si512();
        let offsets = _mm512_dpbusd_epi32(none, _mm512_set1_epi8(zero.cast_signed()), q);
        Pair { q, offsets: _mm512_sub_epi32(none, offsets) }
    }

    /// u·q − zero·Σq of both blocks, each in the lanes of its half.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn times(self, u: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(self.offsets, u, self.q)
    }
}
