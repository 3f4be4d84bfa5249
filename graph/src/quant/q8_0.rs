//! Q8_0: 32 values of 8 bits under one scale; y = d · q.

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, f16_bytes};

/// 34 bytes for 32 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// Scale, binary16.
    pub d: [u8; 2],
    /// Values in order.
    pub qs: [i8; 32],
}

const _: () = assert!(size_of::<BlockQ8_0>() == 34 && align_of::<BlockQ8_0>() == 1);

/// y = d · q.
pub fn integers(block: &BlockQ8_0, out: &mut Integers) {
    out.scale = f16_at(block.d);
    for j in 0..32 {
        out.q[j] = i16::from(block.qs[j]);
    }
}

/// The block of these integers: what [`integers`] takes apart.
pub(super) fn pack(from: &Integers) -> BlockQ8_0 {
    BlockQ8_0 { d: f16_bytes(from.scale), qs: std::array::from_fn(|j| from.q[j] as i8) }
}
