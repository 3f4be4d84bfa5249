//! IQ2_S: 256 values as rows of eight from a grid of 1024 with signs, in 16 sub-blocks of 16, each with a 4-bit scale;
//! y = (d / 8 · (2·scale + 1)) · ±grid.

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, grids};

/// 82 bytes for 256 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockIq2S {
    /// Scale of the scales, binary16.
    pub d: [u8; 2],
    /// Low eight bits of the rows' numbers, one for each eight values.
    pub qs: [u8; 32],
    /// Bit j of byte k is the sign of value 8k + j.
    pub signs: [u8; 32],
    /// High two bits of the rows' numbers: bits 2(k mod 4) and up of byte k / 4 are row k's.
    pub qh: [u8; 8],
    /// Nibble s mod 2 of byte s / 2 is sub-block s's scale.
    pub scales: [u8; 8],
}

const _: () = assert!(size_of::<BlockIq2S>() == 82 && align_of::<BlockIq2S>() == 1);

/// y = (d / 8 · (2·scale + 1)) · ±grid; both products are exact (11 by 5 bits, then 6).
pub fn integers(block: &BlockIq2S, out: &mut Integers) {
    out.scale = f16_at(block.d) * 0.125;
    for (s, to) in out.sub_scales.iter_mut().enumerate() {
        *to = 2 * i16::from(block.scales[s / 2] >> (s % 2 * 4) & 0x0f) + 1;
    }
    for k in 0..32 {
        let high = usize::from(block.qh[k / 4] >> (2 * (k % 4)) & 3);
        let row = grids::eight(grids::IQ2_S[usize::from(block.qs[k]) | high << 8]);
        out.q[8 * k..][..8].copy_from_slice(&grids::signed(row, block.signs[k]));
    }
}
