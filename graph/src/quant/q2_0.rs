//! Q2_0: 64 values of 2 bits under one scale; y = d · (q − 1).

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at};

/// 18 bytes for 64 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockQ2_0 {
    /// Scale, binary16.
    pub d: [u8; 2],
    /// Bits 2j and 2j + 1 of byte i are value 4i + j.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ2_0>() == 18 && align_of::<BlockQ2_0>() == 1);

/// y = d · (q − 1), q being 0 to 3, of values 32·`part` and up.
pub fn integers(block: &BlockQ2_0, part: usize, out: &mut Integers) {
    out.scale = f16_at(block.d);
    for (j, q) in out.q[..32].iter_mut().enumerate() {
        *q = i16::from(block.qs[8 * part + j / 4] >> (2 * (j % 4)) & 3) - 1;
    }
}
