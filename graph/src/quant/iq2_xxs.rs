//! IQ2_XXS: 256 values as rows of eight from a grid of 256 with signs, in 8 sub-blocks of 32, each with a 4-bit scale;
//! y = (d / 8 · (2·scale + 1)) · ±grid.

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, grids};

/// 66 bytes for 256 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockIq2Xxs {
    /// Scale of the scales, binary16.
    pub d: [u8; 2],
    /// Sub-block s has bytes 8s and up: four numbers of rows, then a little-endian u32: bits 7k to 7k + 6 are the signs of
    /// row k ([`grids::even_signs`]), bits 28 to 31 the scale.
    pub qs: [u8; 64],
}

const _: () = assert!(size_of::<BlockIq2Xxs>() == 66 && align_of::<BlockIq2Xxs>() == 1);

/// y = (d / 8 · (2·scale + 1)) · ±grid; both products are exact (11 by 5 bits, then 6).
pub fn integers(block: &BlockIq2Xxs, out: &mut Integers) {
    out.scale = f16_at(block.d) * 0.125;
    for (s, [a, b, c, d, rest @ ..]) in block.qs.as_chunks::<8>().0.iter().enumerate() {
        let bits = u32::from_le_bytes(*rest);
        out.sub_scales[s] = 2 * (bits >> 28) as i16 + 1;
        for (k, row) in [a, b, c, d].into_iter().enumerate() {
            let signs = grids::even_signs((bits >> (7 * k)) as u8);
            let row = grids::eight(grids::IQ2_XXS[usize::from(*row)]);
            out.q[32 * s + 8 * k..][..8].copy_from_slice(&grids::signed(row, signs));
        }
    }
}
