//! Q4_0: 32 values of 4 bits under one scale; y = d · (q − 8).

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, f16_bytes};

/// 18 bytes for 32 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// Scale, binary16.
    pub d: [u8; 2],
    /// Low nibbles are values 0–15, high nibbles values 16–31.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ4_0>() == 18 && align_of::<BlockQ4_0>() == 1);

/// y = d · (q − 8).
pub fn integers(block: &BlockQ4_0, out: &mut Integers) {
    out.scale = f16_at(block.d);
    for j in 0..16 {
        out.q[j] = i16::from(block.qs[j] & 0x0f) - 8;
        out.q[j + 16] = i16::from(block.qs[j] >> 4) - 8;
    }
}

/// The block of these integers: what [`integers`] takes apart.
pub(super) fn pack(from: &Integers) -> BlockQ4_0 {
    let code = |i: usize| (from.q[i] + 8) as u8;
    BlockQ4_0 { d: f16_bytes(from.scale), qs: std::array::from_fn(|j| code(j) | code(j + 16) << 4) }
}
