//! IQ4_XS: 256 values of 4 bits into IQ4_NL's table, in 8 sub-blocks of 32, each with a 6-bit scale;
//! y = (d · (scale − 32)) · `table[q]`.

use bytemuck::{Pod, Zeroable};

use super::{
    Integers, f16_at, f16_bytes,
    iq4_nl::{TABLE, code_of},
};

/// 136 bytes for 256 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockIq4Xs {
    /// Scale of the scales, binary16.
    pub d: [u8; 2],
    /// Upper two bits of the scales: bits 2s and 2s+1 of the little-endian u16 are sub-block s's.
    pub scales_h: [u8; 2],
    /// Lower four bits of the scales: nibble s mod 2 of byte s / 2 is sub-block s's.
    pub scales_l: [u8; 4],
    /// Sub-block s has bytes 16s and up: low nibbles are its values 0–15, high nibbles its values 16–31.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockIq4Xs>() == 136 && align_of::<BlockIq4Xs>() == 1);

/// The 8 scales, −32..31.
pub fn scales(block: &BlockIq4Xs) -> [i8; 8] {
    let high = u16::from_le_bytes(block.scales_h);
    std::array::from_fn(|s| {
        let low = block.scales_l[s / 2] >> (s % 2 * 4) & 0x0f;
        (low | ((high >> (2 * s) & 3) as u8) << 4) as i8 - 32
    })
}

/// y = (d · (scale − 32)) · `table[q]`; both products are exact (11 by 5 or a power of two, then 7 bits).
pub fn integers(block: &BlockIq4Xs, out: &mut Integers) {
    out.scale = f16_at(block.d);
    for (to, scale) in out.sub_scales.iter_mut().zip(scales(block)) {
        *to = i16::from(scale);
    }
    for s in 0..8 {
        for j in 0..16 {
            let packed = block.qs[16 * s + j];
            out.q[32 * s + j] = i16::from(TABLE[usize::from(packed & 0x0f)]);
            out.q[32 * s + j + 16] = i16::from(TABLE[usize::from(packed >> 4)]);
        }
    }
}

/// The block of these integers: what [`integers`] takes apart.
pub(super) fn pack(from: &Integers) -> BlockIq4Xs {
    let scale = |s: usize| (from.sub_scales[s] + 32) as u8;
    let high = (0..8).fold(0u16, |high, s| high | u16::from(scale(s) >> 4) << (2 * s));
    BlockIq4Xs {
        d: f16_bytes(from.scale),
        scales_h: high.to_le_bytes(),
        scales_l: std::array::from_fn(|b| scale(2 * b) & 0x0f | scale(2 * b + 1) << 4),
        qs: std::array::from_fn(|b| {
            let first = b / 16 * 32 + b % 16;
            code_of(from.q[first]) | code_of(from.q[first + 16]) << 4
        }),
    }
}
