//! IQ3_XXS: 256 values as rows of four from a grid of 256 with signs, in 8 sub-blocks of 32, each with a 4-bit scale;
//! y = (d / 4 · (2·scale + 1)) · ±grid.

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, grids};

/// 98 bytes for 256 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockIq3Xxs {
    /// Scale of the scales, binary16.
    pub d: [u8; 2],
    /// The rows' numbers, one for each four values.
    pub qs: [u8; 64],
    /// For each sub-block a little-endian u32: bits 7k to 7k + 6 are the signs of its values 8k and up
    /// ([`grids::even_signs`]), bits 28 to 31 its scale.
    pub scales_and_signs: [[u8; 4]; 8],
}

const _: () = assert!(size_of::<BlockIq3Xxs>() == 98 && align_of::<BlockIq3Xxs>() == 1);

/// y = (d / 4 · (2·scale + 1)) · ±grid; both products are exact (11 by 5 bits, then 6).
pub fn integers(block: &BlockIq3Xxs, out: &mut Integers) {
    out.scale = f16_at(block.d) * 0.25;
    for (s, bits) in block.scales_and_signs.iter().enumerate() {
        let bits = u32::from_le_bytes(*bits);
        out.sub_scales[s] = 2 * (bits >> 28) as i16 + 1;
        for k in 0..4 {
            let row = |i: usize| grids::IQ3_XXS[usize::from(block.qs[8 * s + 2 * k + i])];
            let signs = grids::even_signs((bits >> (7 * k)) as u8);
            let values = grids::signed(grids::four_and_four(row(0), row(1)), signs);
            out.q[32 * s + 8 * k..][..8].copy_from_slice(&values);
        }
    }
}
