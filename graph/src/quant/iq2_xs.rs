//! IQ2_XS: 256 values as rows of eight from a grid of 512 with signs, in 16 sub-blocks of 16, each with a 4-bit scale;
//! y = (d / 8 · (2·scale + 1)) · ±grid.

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, grids};

/// 74 bytes for 256 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockIq2Xs {
    /// Scale of the scales, binary16.
    pub d: [u8; 2],
    /// For each eight values a little-endian u16: the row's number in 9 bits, above them its signs
    /// ([`grids::even_signs`]).
    pub qs: [[u8; 2]; 32],
    /// Nibble s mod 2 of byte s / 2 is sub-block s's scale.
    pub scales: [u8; 8],
}

const _: () = assert!(size_of::<BlockIq2Xs>() == 74 && align_of::<BlockIq2Xs>() == 1);

/// y = (d / 8 · (2·scale + 1)) · ±grid; both products are exact (11 by 5 bits, then 6).
pub fn integers(block: &BlockIq2Xs, out: &mut Integers) {
    out.scale = f16_at(block.d) * 0.125;
    for (s, to) in out.sub_scales.iter_mut().enumerate() {
        *to = 2 * i16::from(block.scales[s / 2] >> (s % 2 * 4) & 0x0f) + 1;
    }
    for (k, packed) in block.qs.iter().enumerate() {
        let packed = u16::from_le_bytes(*packed);
        let row = grids::eight(grids::IQ2_XS[usize::from(packed & 511)]);
        let signs = grids::even_signs((packed >> 9) as u8);
        out.q[8 * k..][..8].copy_from_slice(&grids::signed(row, signs));
    }
}
