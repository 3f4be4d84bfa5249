//! One token against rows of weights, unpacking and multiplying in registers, a row as one stream: what the other
//! instruction sets do, 16 elements at a time, with the same bits. Nothing is asked for ahead: the standard library has no
//! stable prefetch for aarch64, and hardware follows one stream. Bytes are signed here, so Q6_K and Q4_0 take their zero off first.

use super::super::layout::TileStep;
use super::dot4;
use half::f16;
use moe_run_graph::quant::Format;
use std::arch::aarch64::*;

/// `out` = the products of as many rows of `inner` elements, one behind the other from `at` on, with a one-token tile of
/// as many elements; false for formats without a kernel here.
///
/// # Safety
/// The CPU has NEON with dot products; the rows are readable; `inner` is a whole number of blocks, and the tile has that
/// many elements with their sums and scales, a scale per 256 for super-blocks and per 32 for the others.
#[target_feature(enable = "neon,dotprod")]
pub unsafe fn dot(format: Format, at: *const u8, inner: usize, tile: TileStep<'_>, out: &mut [f32]) -> bool {
    // SAFETY: the caller's promise covers every block of every row.
    unsafe {
        match format {
            Format::Q4K => each_row::<144, 256>(at, inner, tile, out, |b, t| k4_or_k5::<false>(b, t)),
            Format::Q5K => each_row::<176, 256>(at, inner, tile, out, |b, t| k4_or_k5::<true>(b, t)),
            Format::Q6K => each_row::<210, 256>(at, inner, tile, out, |b, t| q6_k(b, t)),
            Format::Q8_0 => each_row::<34, 32>(at, inner, tile, out, |b, t| q8_0(b, t)),
            Format::Q4_0 => each_row::<18, 32>(at, inner, tile, out, |b, t| q4_0(b, t)),
            _ => return false,
        }
    }
    true
}

/// A block's activations.
#[derive(Clone, Copy)]
struct Token {
    q: *const i8,
    neg_sums32: *const i32,
}

/// A block's sums, the products' spread over lanes, its d and its dmin.
#[derive(Clone, Copy)]
struct Sums {
    products: int32x4_t,
    /// And dmin, where the format has minima.
    minima: Option<(i32, f32)>,
    d: f32,
}

/// The products of rows of blocks that have `BYTES` and `ELEMS`; `block` takes one.
///
/// # Safety
/// As [`dot`].
#[inline(always)]
unsafe fn each_row<const BYTES: usize, const ELEMS: usize>(
    mut at: *const u8,
    inner: usize,
    tile: TileStep<'_>,
    out: &mut [f32],
    block: impl Fn(*const u8, Token) -> Sums,
) {
    for row in out {
        // SAFETY: blocks below `inner / ELEMS` exist in the row and in the tile.
        unsafe {
            let mut sum = 0.0f32;
            for b in 0..inner / ELEMS {
                let token = Token {
                    q: tile.q.as_ptr().add(ELEMS * b),
                    neg_sums32: tile.neg_sums32.as_ptr().add(ELEMS / 32 * b),
                };
                let a = *tile.scale.as_ptr().add(b);
                let Sums { products, minima, d } = block(at, token);
                if let Some((minima, dmin)) = minima {
                    sum = (dmin * a).mul_add(minima as f32, sum);
                }
                sum = (d * a).mul_add(vaddvq_s32(products) as f32, sum);
                at = at.add(BYTES);
            }
            *row = sum;
        }
    }
}

/// The f16 at `at`.
///
/// # Safety
/// It is readable.
#[inline(always)]
unsafe fn half(at: *const u8) -> f32 {
    // SAFETY: the caller's promise.
    f16::from_bits(u16::from_le(unsafe { at.cast::<u16>().read_unaligned() })).to_f32()
}

/// Bytes 0..16 from `at` on.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load(at: *const u8) -> uint8x16_t {
    // SAFETY: the caller's promise.
    unsafe { vld1q_u8(at) }
}

/// Σ w·q over 32 elements, spread over the lanes.
///
/// # Safety
/// `q` has 32 elements.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn products(w: [int8x16_t; 2], q: *const i8) -> int32x4_t {
    // SAFETY: the caller's promise.
    let (first, second) = unsafe { (vld1q_s8(q), vld1q_s8(q.add(16))) };
    dot4(dot4(vdupq_n_s32(0), w[0], first), w[1], second)
}

/// The 6-bit scales and minima of the eight sub-blocks of Q4_K and Q5_K from their 12 bytes s0, s1, s2 (four each): of the
/// first four, s0 and s1 hold all six bits; of the others, s2 holds the low four (the scale's in its low nibble) and the two
/// high bits of s0 and s1 those above.
#[inline(always)]
fn scales_and_mins_6bit(bytes: [u8; 12]) -> ([u8; 8], [u8; 8]) {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (s0, s1, s2) = (word(0), word(4), word(8));
    let both = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).to_le_bytes();
    (
        both(s0 & 0x3f3f_3f3f, (s2 & 0x0f0f_0f0f) | (s0 >> 2 & 0x3030_3030)),
        both(s1 & 0x3f3f_3f3f, (s2 >> 4 & 0x0f0f_0f0f) | (s1 >> 2 & 0x3030_3030)),
    )
}

/// Q4_K and Q5_K (`FIFTH`): Σ scale·(u·q) and Σ min·(−Σq).
///
/// # Safety
/// The block and the token's elements are readable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn k4_or_k5<const FIFTH: bool>(block: *const u8, token: Token) -> Sums {
    // SAFETY: the caller's promise.
    unsafe {
        let (scales, mins) = scales_and_mins_6bit(block.add(4).cast::<[u8; 12]>().read());
        let nibble = vdupq_n_u8(15);
        let qs = block.add(if FIFTH { 48 } else { 16 });
        let fifth = if FIFTH { [load(block.add(16)), load(block.add(32))] } else { [nibble; 2] };
        let (mut int, mut min_sum) = (vdupq_n_s32(0), 0);
        for s in 0..8 {
            let mut w = [vdupq_n_s8(0); 2];
            for (c, w) in w.iter_mut().enumerate() {
                let x = load(qs.add(s / 2 * 32 + 16 * c));
                let mut u = if s % 2 == 0 { vandq_u8(x, nibble) } else { vshrq_n_u8::<4>(x) };
                if FIFTH {
                    let bit = vandq_u8(vshlq_u8(fifth[c], vdupq_n_s8(-(s as i8))), vdupq_n_u8(1));
                    u = vorrq_u8(u, vshlq_n_u8::<4>(bit));
                }
                *w = vreinterpretq_s8_u8(u);
            }
            int = vmlaq_n_s32(int, products(w, token.q.add(32 * s)), i32::from(scales[s]));
            min_sum += i32::from(mins[s]) * *token.neg_sums32.add(s);
        }
        Sums { products: int, minima: Some((min_sum, half(block.add(2)))), d: half(block) }
    }
}

/// Q6_K: Σ scale·(u − 32)·q.
///
/// # Safety
/// As [`k4_or_k5`].
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn q6_k(block: *const u8, token: Token) -> Sums {
    // SAFETY: the caller's promise.
    unsafe {
        let (nibble, two_bits, zero) = (vdupq_n_u8(15), vdupq_n_u8(0x30), vdupq_n_u8(32));
        let mut int = vdupq_n_s32(0);
        for half in 0..2 {
            for c in 0..2 {
                let first = load(block.add(64 * half + 16 * c));
                let second = load(block.add(64 * half + 32 + 16 * c));
                let top = load(block.add(128 + 32 * half + 16 * c));
                let u = [
                    (vandq_u8(first, nibble), vshlq_n_u8::<4>(top)),
                    (vandq_u8(second, nibble), vshlq_n_u8::<2>(top)),
                    (vshrq_n_u8::<4>(first), top),
                    (vshrq_n_u8::<4>(second), vshrq_n_u8::<2>(top)),
                ];
                for (quarter, (low, high)) in u.into_iter().enumerate() {
                    let u = vorrq_u8(low, vandq_u8(high, two_bits));
                    let w = vreinterpretq_s8_u8(vsubq_u8(u, zero));
                    let sub = half * 8 + quarter * 2 + c;
                    let x = dot4(vdupq_n_s32(0), w, vld1q_s8(token.q.add(16 * sub)));
                    let scale = block.add(192 + sub).cast::<i8>().read();
                    int = vmlaq_n_s32(int, x, i32::from(scale));
                }
            }
        }
        Sums { products: int, minima: None, d: self::half(block.add(208)) }
    }
}

/// Q8_0: Σ w·q.
///
/// # Safety
/// As [`k4_or_k5`].
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn q8_0(block: *const u8, token: Token) -> Sums {
    // SAFETY: the caller's promise.
    unsafe {
        let w = [vreinterpretq_s8_u8(load(block.add(2))), vreinterpretq_s8_u8(load(block.add(18)))];
        Sums { products: products(w, token.q), minima: None, d: half(block) }
    }
}

/// Q4_0: low nibbles, then high ones, less 8.
///
/// # Safety
/// As [`k4_or_k5`].
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn q4_0(block: *const u8, token: Token) -> Sums {
    // SAFETY: the caller's promise.
    unsafe {
        let x = load(block.add(2));
        let zero = vdupq_n_u8(8);
        let low = vsubq_u8(vandq_u8(x, vdupq_n_u8(15)), zero);
        let high = vsubq_u8(vshrq_n_u8::<4>(x), zero);
        let w = [vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high)];
        Sums { products: products(w, token.q), minima: None, d: half(block) }
    }
}
