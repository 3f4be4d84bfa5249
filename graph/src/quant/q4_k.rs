//! Q4_K: 256 values of 4 bits in 8 sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum;
//! y = (d · scale) · q − (dmin · min).

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, f16_bytes};

/// 144 bytes for 256 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockQ4K {
    /// Scale of the scales, binary16.
    pub d: [u8; 2],
    /// Scale of the minima, binary16.
    pub dmin: [u8; 2],
    /// 8 scales and 8 minima of 6 bits, see [`scales_and_mins`].
    pub scales: [u8; 12],
    /// Four runs of 32 bytes; in run r, low nibbles are values 64r + l, high nibbles values 64r + 32 + l.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockQ4K>() == 144 && align_of::<BlockQ4K>() == 1);

/// The 8 scales and the 8 minima, 0..63, of Q4_K and Q5_K.
///
/// Sub-blocks 0–3: the low six bits of bytes 0–3 (scales) and 4–7 (minima). Sub-blocks 4–7: the nibbles of bytes 8–11
/// (low: scales, high: minima), with their upper two bits in the upper two bits of bytes 0–3 and 4–7.
pub fn scales_and_mins(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for s in 0..4 {
        scales[s] = packed[s] & 0x3f;
        mins[s] = packed[s + 4] & 0x3f;
        scales[s + 4] = packed[s + 8] & 0x0f | packed[s] >> 6 << 4;
        mins[s + 4] = packed[s + 8] >> 4 | packed[s + 4] >> 6 << 4;
    }
    (scales, mins)
}

/// y = (d · scale) · q − (dmin · min); both products are exact (11 by 6, then 4 bits), the difference is rounded once.
pub fn integers(block: &BlockQ4K, out: &mut Integers) {
    (out.scale, out.min) = (f16_at(block.d), f16_at(block.dmin));
    let (scales, mins) = scales_and_mins(&block.scales);
    for s in 0..8 {
        (out.sub_scales[s], out.sub_mins[s]) = (i16::from(scales[s]), i16::from(mins[s]));
        for l in 0..32 {
            out.q[32 * s + l] = i16::from(block.qs[s / 2 * 32 + l] >> (s % 2 * 4) & 0x0f);
        }
    }
}

/// What [`scales_and_mins`] takes apart.
pub(super) fn pack_scales_and_mins(from: &Integers) -> [u8; 12] {
    let (scale, min) = (|s: usize| from.sub_scales[s] as u8, |s: usize| from.sub_mins[s] as u8);
    let mut packed = [0; 12];
    for s in 0..4 {
        packed[s] = scale(s) | scale(s + 4) >> 4 << 6;
        packed[s + 4] = min(s) | min(s + 4) >> 4 << 6;
        packed[s + 8] = scale(s + 4) & 0x0f | min(s + 4) << 4;
    }
    packed
}

/// The lower four bits of 256 integers, as Q4_K and Q5_K have them.
pub(super) fn pack_low_bits(from: &Integers) -> [u8; 128] {
    let low = |i: usize| from.q[i] as u8 & 0x0f;
    std::array::from_fn(|b| low(b / 32 * 64 + b % 32) | low(b / 32 * 64 + 32 + b % 32) << 4)
}

/// The block of these integers: what [`integers`] takes apart.
pub(super) fn pack(from: &Integers) -> BlockQ4K {
    BlockQ4K {
        d: f16_bytes(from.scale),
        dmin: f16_bytes(from.min),
        scales: pack_scales_and_mins(from),
        qs: pack_low_bits(from),
    }
}
