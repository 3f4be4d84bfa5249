//! Q8_0: 32 values of 8 bits under one scale; y = d · q.

use bytemuck::{Pod, Zeroable};

use super::f16_at;

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
pub fn decode(block: &BlockQ8_0, out: &mut [f32; 32]) {
    let d = f16_at(block.d);
    for j in 0..32 {
        out[j] = d * f32::from(block.qs[j]);
    }
}
