//! IQ1_M: 256 values as rows of eight from IQ1_S's grid, in 16 sub-blocks of 16, each with a 3-bit scale; each row adds an
//! eighth or takes it off; y = (d / 8 · (2·scale + 1)) · (8·grid ± 1).

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, grids};

/// 56 bytes for 256 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockIq1M {
    /// Low eight bits of the rows' numbers, one for each eight values.
    pub qs: [u8; 32],
    /// Nibble k mod 2 of byte k / 2 is row k's: three high bits of its number, and above them 1 where the eighth is taken
    /// off.
    pub qh: [u8; 16],
    /// Four little-endian u16: bits 3i to 3i + 2 of number j are the scale of sub-block 4j + i; bits 12 to 15 are bits 4j and
    /// up of the scale of the scales, a binary16.
    pub scales: [[u8; 2]; 4],
}

const _: () = assert!(size_of::<BlockIq1M>() == 56 && align_of::<BlockIq1M>() == 1);

/// The scale of the scales, binary16.
pub fn scale(block: &BlockIq1M) -> [u8; 2] {
    let nibble = |j: usize| block.scales[j][1] >> 4;
    [nibble(0) | nibble(1) << 4, nibble(2) | nibble(3) << 4]
}

/// Sets the scale of the scales.
pub fn set_scale(block: &mut BlockIq1M, d: [u8; 2]) {
    for (j, nibble) in [d[0] & 15, d[0] >> 4, d[1] & 15, d[1] >> 4].into_iter().enumerate() {
        block.scales[j][1] = block.scales[j][1] & 15 | nibble << 4;
    }
}

/// y = (d / 8 · (2·scale + 1)) · (8·grid ± 1); both products are exact (11 by 4 bits, then 4).
pub fn integers(block: &BlockIq1M, out: &mut Integers) {
    out.scale = f16_at(scale(block)) * 0.125;
    for (s, to) in out.sub_scales.iter_mut().enumerate() {
        let bits = u16::from_le_bytes(block.scales[s / 4]) >> (3 * (s % 4)) & 7;
        *to = 2 * bits.cast_signed() + 1;
    }
    for k in 0..32 {
        let nibble = block.qh[k / 2] >> (k % 2 * 4);
        let eighth = if nibble & 8 == 8 { -1 } else { 1 };
        let row = grids::eight(grids::IQ1[usize::from(block.qs[k]) | usize::from(nibble & 7) << 8]);
        out.q[8 * k..][..8].copy_from_slice(&row.map(|x| i16::from(x) + eighth));
    }
}
