//! Q6_K: 256 values of 6 bits in 16 sub-blocks of 16, each with an 8-bit scale; y = (d · scale) · (q − 32).

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, f16_bytes};

/// 210 bytes for 256 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockQ6K {
    /// Lower four bits: two halves of 64 bytes; in half h, low nibbles of byte l are values 128h + l, high nibbles values
    /// 128h + 64 + l.
    pub ql: [u8; 128],
    /// Upper two bits: two halves of 32 bytes; in half h, bits 2k and 2k+1 of byte l are value 128h + 32k + l's.
    pub qh: [u8; 64],
    /// Scale of each sub-block.
    pub scales: [i8; 16],
    /// Scale of the scales, binary16.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<BlockQ6K>() == 210 && align_of::<BlockQ6K>() == 1);

/// y = (d · scale) · (q − 32); the first product is exact (11 by 7 bits), the second too (by 5 more: 24 at most, since
/// |scale| = 128 and |q − 32| = 32 are powers of two).
pub fn integers(block: &BlockQ6K, out: &mut Integers) {
    out.scale = f16_at(block.d);
    out.sub_scales = block.scales.map(i16::from);
    for i in 0..256 {
        let (half, quarter, byte) = (i / 128, i % 128 / 32, i % 32);
        let low = block.ql[64 * half + i % 64] >> (quarter / 2 * 4) & 0x0f;
        let high = block.qh[32 * half + byte] >> (quarter * 2) & 3;
        out.q[i] = i16::from(low | high << 4) - 32;
    }
}

/// The block of these integers: what [`integers`] takes apart.
pub(super) fn pack(from: &Integers) -> BlockQ6K {
    let (mut ql, mut qh) = ([0; 128], [0; 64]);
    for (i, q) in from.q.iter().enumerate() {
        let (half, quarter, code) = (i / 128, i % 128 / 32, (q + 32) as u8);
        ql[64 * half + i % 64] |= (code & 0x0f) << (quarter / 2 * 4);
        qh[32 * half + i % 32] |= (code >> 4) << (quarter * 2);
    }
    BlockQ6K { ql, qh, scales: std::array::from_fn(|s| from.sub_scales[s] as i8), d: f16_bytes(from.scale) }
}
