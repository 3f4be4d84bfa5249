//! Q5_1: 32 values of 5 bits under one scale and one minimum; y = d · q + m.

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, f16_bytes};

/// 24 bytes for 32 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockQ5_1 {
    /// Scale, binary16.
    pub d: [u8; 2],
    /// Minimum, binary16, added.
    pub m: [u8; 2],
    /// Fifth bits: bit j of the little-endian u32 is value j's.
    pub qh: [u8; 4],
    /// Low nibbles are values 0–15, high nibbles values 16–31.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ5_1>() == 24 && align_of::<BlockQ5_1>() == 1);

/// y = d · q + m; the product is exact (11 by 5 bits).
pub fn integers(block: &BlockQ5_1, out: &mut Integers) {
    (out.scale, out.min) = (f16_at(block.d), -f16_at(block.m));
    let high = u32::from_le_bytes(block.qh);
    for j in 0..16 {
        out.q[j] = i16::from(block.qs[j] & 0x0f) | ((high >> j & 1) << 4) as i16;
        out.q[j + 16] = i16::from(block.qs[j] >> 4) | ((high >> (j + 16) & 1) << 4) as i16;
    }
}

/// The block of these integers: what [`integers`] takes apart.
pub(super) fn pack(from: &Integers) -> BlockQ5_1 {
    let code = |i: usize| from.q[i] as u8;
    let high = (0..32).fold(0u32, |high, j| high | u32::from(code(j) >> 4) << j);
    BlockQ5_1 {
        d: f16_bytes(from.scale),
        m: f16_bytes(-from.min),
        qh: high.to_le_bytes(),
        qs: std::array::from_fn(|j| code(j) & 0x0f | code(j + 16) << 4),
    }
}
