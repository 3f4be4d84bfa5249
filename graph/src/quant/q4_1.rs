//! Q4_1: 32 values of 4 bits under one scale and one minimum; y = d · q + m.

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, f16_bytes};

/// 20 bytes for 32 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockQ4_1 {
    /// Scale, binary16.
    pub d: [u8; 2],
    /// Minimum, binary16, added.
    pub m: [u8; 2],
    /// Low nibbles are values 0–15, high nibbles values 16–31.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ4_1>() == 20 && align_of::<BlockQ4_1>() == 1);

/// y = d · q + m; the product is exact (11 by 4 bits).
pub fn integers(block: &BlockQ4_1, out: &mut Integers) {
    (out.scale, out.min) = (f16_at(block.d), -f16_at(block.m));
    for j in 0..16 {
        out.q[j] = i16::from(block.qs[j] & 0x0f);
        out.q[j + 16] = i16::from(block.qs[j] >> 4);
    }
}

/// The block of these integers: what [`integers`] takes apart.
pub(super) fn pack(from: &Integers) -> BlockQ4_1 {
    let code = |i: usize| from.q[i] as u8;
    BlockQ4_1 {
        d: f16_bytes(from.scale),
        m: f16_bytes(-from.min),
        qs: std::array::from_fn(|j| code(j) | code(j + 16) << 4),
    }
}
