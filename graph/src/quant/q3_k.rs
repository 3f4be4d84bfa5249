//! Q3_K: 256 values of 3 bits in 16 sub-blocks of 16, each with a 6-bit scale; y = (d · (scale − 32)) · (q − 4).

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, f16_bytes};

/// 110 bytes for 256 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockQ3K {
    /// Third bits: bit k of byte l is value 32k + l's.
    pub hmask: [u8; 32],
    /// Lower two bits: two halves of 32 bytes; in half h, bits 2k and 2k+1 of byte l are value 128h + 32k + l.
    pub qs: [u8; 64],
    /// 16 scales of 6 bits, see [`scales`].
    pub scales: [u8; 12],
    /// Scale of the scales, binary16.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<BlockQ3K>() == 110 && align_of::<BlockQ3K>() == 1);

/// The 16 scales, −32..31. Lower four bits of scale s: nibble s / 8 of byte s mod 8; upper two: bits 2 (s / 4) and up of
/// byte 8 + s mod 4.
pub fn scales(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|s| {
        let low = packed[s % 8] >> (s / 8 * 4) & 0x0f;
        let high = packed[8 + s % 4] >> (s / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// y = (d · (scale − 32)) · (q − 4); both products are exact (11 by 6, then 3 bits).
pub fn integers(block: &BlockQ3K, out: &mut Integers) {
    out.scale = f16_at(block.d);
    out.sub_scales = scales(&block.scales).map(i16::from);
    for i in 0..256 {
        let (half, shift, byte) = (i / 128, i % 128 / 32 * 2, i % 32);
        let low = block.qs[32 * half + byte] >> shift & 3;
        let high = block.hmask[byte] >> (i / 32) & 1;
        out.q[i] = i16::from(low | high << 2) - 4;
    }
}

/// The block of these integers: what [`integers`] takes apart.
pub(super) fn pack(from: &Integers) -> BlockQ3K {
    let mut block = BlockQ3K { hmask: [0; 32], qs: [0; 64], scales: [0; 12], d: f16_bytes(from.scale) };
    for (i, q) in from.q.iter().enumerate() {
        let code = (q + 4) as u8;
        block.qs[i / 128 * 32 + i % 32] |= (code & 3) << (i % 128 / 32 * 2);
        block.hmask[i % 32] |= (code >> 2) << (i / 32);
    }
    for (s, scale) in from.sub_scales.iter().enumerate() {
        let code = (scale + 32) as u8;
        block.scales[s % 8] |= (code & 0x0f) << (s / 8 * 4);
        block.scales[8 + s % 4] |= (code >> 4) << (s / 4 * 2);
    }
    block
}
