//! Q5_K: 256 values of 5 bits in 8 sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum;
//! y = (d · scale) · q − (dmin · min).

use bytemuck::{Pod, Zeroable};

use super::{
    Integers, f16_at, f16_bytes,
    q4_k::{pack_low_bits, pack_scales_and_mins, scales_and_mins},
};

/// 176 bytes for 256 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockQ5K {
    /// Scale of the scales, binary16.
    pub d: [u8; 2],
    /// Scale of the minima, binary16.
    pub dmin: [u8; 2],
    /// 8 scales and 8 minima of 6 bits, as in Q4_K.
    pub scales: [u8; 12],
    /// Fifth bits: bit s of byte l is value 32s + l's.
    pub qh: [u8; 32],
    /// Lower four bits, as in Q4_K.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockQ5K>() == 176 && align_of::<BlockQ5K>() == 1);

/// y = (d · scale) · q − (dmin · min); both products are exact (11 by 6, then 5 bits), the difference is rounded once.
pub fn integers(block: &BlockQ5K, out: &mut Integers) {
    (out.scale, out.min) = (f16_at(block.d), f16_at(block.dmin));
    let (scales, mins) = scales_and_mins(&block.scales);
    for s in 0..8 {
        (out.sub_scales[s], out.sub_mins[s]) = (i16::from(scales[s]), i16::from(mins[s]));
        for l in 0..32 {
            let low = block.qs[s / 2 * 32 + l] >> (s % 2 * 4) & 0x0f;
            let high = block.qh[l] >> s & 1;
            out.q[32 * s + l] = i16::from(low | high << 4);
        }
    }
}

/// The block of these integers: what [`integers`] takes apart.
pub(super) fn pack(from: &Integers) -> BlockQ5K {
    let mut qh = [0; 32];
    for (i, q) in from.q.iter().enumerate() {
        qh[i % 32] |= (*q as u8 >> 4) << (i / 32);
    }
    BlockQ5K {
        d: f16_bytes(from.scale),
        dmin: f16_bytes(from.min),
        scales: pack_scales_and_mins(from),
        qh,
        qs: pack_low_bits(from),
    }
}
