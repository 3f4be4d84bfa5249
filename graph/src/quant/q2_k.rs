//! Q2_K: 256 values of 2 bits in 16 sub-blocks of 16, each with a 4-bit scale and a 4-bit minimum;
//! y = (d · scale) · q − (dmin · min).

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, f16_bytes};

/// 84 bytes for 256 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockQ2K {
    /// Sub-block s: scale in the low nibble, minimum in the high one.
    pub scales: [u8; 16],
    /// Two halves of 32 bytes; in half h, bits 2k and 2k+1 of byte l are value 128h + 32k + l.
    pub qs: [u8; 64],
    /// Scale of the scales, binary16.
    pub d: [u8; 2],
    /// Scale of the minima, binary16.
    pub dmin: [u8; 2],
}

const _: () = assert!(size_of::<BlockQ2K>() == 84 && align_of::<BlockQ2K>() == 1);

/// y = (d · scale) · q − (dmin · min); both products are exact (11 by 4, then 2 bits), the difference is rounded once.
pub fn integers(block: &BlockQ2K, out: &mut Integers) {
    (out.scale, out.min) = (f16_at(block.d), f16_at(block.dmin));
    for (s, packed) in block.scales.iter().enumerate() {
        (out.sub_scales[s], out.sub_mins[s]) = (i16::from(packed & 0x0f), i16::from(packed >> 4));
    }
    for i in 0..256 {
        let (half, shift, byte) = (i / 128, i % 128 / 32 * 2, i % 32);
        out.q[i] = i16::from(block.qs[32 * half + byte] >> shift & 3);
    }
}

/// The block of these integers: what [`integers`] takes apart.
pub(super) fn pack(from: &Integers) -> BlockQ2K {
    let mut qs = [0; 64];
    for (i, q) in from.q.iter().enumerate() {
        qs[i / 128 * 32 + i % 32] |= (*q as u8) << (i % 128 / 32 * 2);
    }
    BlockQ2K {
        scales: std::array::from_fn(|s| from.sub_scales[s] as u8 | (from.sub_mins[s] as u8) << 4),
        qs,
        d: f16_bytes(from.scale),
        dmin: f16_bytes(from.min),
    }
}
