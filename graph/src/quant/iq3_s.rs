//! IQ3_S: 256 values as rows of four from a grid of 512 with signs, in 8 sub-blocks of 32, each with a 4-bit scale;
//! y = (d · (2·scale + 1)) · ±grid.

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, grids};

/// 110 bytes for 256 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockIq3S {
    /// Scale of the scales, binary16.
    pub d: [u8; 2],
    /// Low eight bits of the rows' numbers, one for each four values.
    pub qs: [u8; 64],
    /// The ninth bits: bit k of byte s is that of row k of sub-block s.
    pub qh: [u8; 8],
    /// Bit j of byte k is the sign of value 8k + j.
    pub signs: [u8; 32],
    /// Nibble s mod 2 of byte s / 2 is sub-block s's scale.
    pub scales: [u8; 4],
}

const _: () = assert!(size_of::<BlockIq3S>() == 110 && align_of::<BlockIq3S>() == 1);

/// y = (d · (2·scale + 1)) · ±grid; both products are exact (11 by 5 bits, then 4).
pub fn integers(block: &BlockIq3S, out: &mut Integers) {
    out.scale = f16_at(block.d);
    for s in 0..8 {
        out.sub_scales[s] = 2 * i16::from(block.scales[s / 2] >> (s % 2 * 4) & 0x0f) + 1;
        for k in 0..4 {
            let row = |i: usize| {
                let ninth = usize::from(block.qh[s] >> (2 * k + i) & 1);
                grids::IQ3_S[usize::from(block.qs[8 * s + 2 * k + i]) | ninth << 8]
            };
            let values = grids::signed(grids::four_and_four(row(0), row(1)), block.signs[4 * s + k]);
            out.q[32 * s + 8 * k..][..8].copy_from_slice(&values);
        }
    }
}
