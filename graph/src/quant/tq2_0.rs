//! TQ2_0: 256 values of 2 bits under one scale; y = d · (q − 1).

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at};

/// 66 bytes for 256 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockTq2_0 {
    /// Bits 2n and 2n + 1 of byte 32h + j are value 128h + 32n + j.
    pub qs: [u8; 64],
    /// Scale, binary16.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<BlockTq2_0>() == 66 && align_of::<BlockTq2_0>() == 1);

/// y = d · (q − 1), q being 0 to 3.
pub fn integers(block: &BlockTq2_0, out: &mut Integers) {
    out.scale = f16_at(block.d);
    for (k, q) in out.q.iter_mut().enumerate() {
        let byte = block.qs[k / 128 * 32 + k % 32];
        *q = i16::from(byte >> (k % 128 / 32 * 2) & 3) - 1;
    }
}
