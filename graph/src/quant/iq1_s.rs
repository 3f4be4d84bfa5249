//! IQ1_S: 256 values as rows of eight from a grid of 2048 with the digits −1, 0, 1, in 8 sub-blocks of 32, each with a
//! 3-bit scale and an eighth that is added or taken off; y = (d / 8 · (2·scale + 1)) · (8·grid ± 1).

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, grids};

/// 50 bytes for 256 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockIq1S {
    /// Scale of the scales, binary16.
    pub d: [u8; 2],
    /// Low eight bits of the rows' numbers, one for each eight values.
    pub qs: [u8; 32],
    /// For each sub-block a little-endian u16: bits 3k to 3k + 2 are the high bits of its row k's number, bits 12 to 14 its
    /// scale, bit 15 set means that the eighth is taken off.
    pub qh: [[u8; 2]; 8],
}

const _: () = assert!(size_of::<BlockIq1S>() == 50 && align_of::<BlockIq1S>() == 1);

/// y = (d / 8 · (2·scale + 1)) · (8·grid ± 1); both products are exact (11 by 4 bits, then 4).
pub fn integers(block: &BlockIq1S, out: &mut Integers) {
    out.scale = f16_at(block.d) * 0.125;
    for (s, bits) in block.qh.iter().enumerate() {
        let bits = u16::from_le_bytes(*bits);
        out.sub_scales[s] = 2 * (bits >> 12 & 7).cast_signed() + 1;
        let eighth = if bits >> 15 == 1 { -1 } else { 1 };
        for k in 0..4 {
            let number = usize::from(block.qs[4 * s + k]) | usize::from(bits >> (3 * k) & 7) << 8;
            let row = grids::eight(grids::IQ1[number]).map(|x| i16::from(x) + eighth);
            out.q[32 * s + 8 * k..][..8].copy_from_slice(&row);
        }
    }
}
