//! Q1_0: 128 signs under one scale; y = d · ±1.

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at};

/// 18 bytes for 128 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockQ1_0 {
    /// Scale, binary16.
    pub d: [u8; 2],
    /// Bit j of byte i is value 8i + j: 1 is d, 0 is −d.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ1_0>() == 18 && align_of::<BlockQ1_0>() == 1);

/// y = d · ±1, of values 32·`part` and up.
pub fn integers(block: &BlockQ1_0, part: usize, out: &mut Integers) {
    out.scale = f16_at(block.d);
    for (j, q) in out.q[..32].iter_mut().enumerate() {
        *q = 2 * i16::from(block.qs[4 * part + j / 8] >> (j % 8) & 1) - 1;
    }
}
