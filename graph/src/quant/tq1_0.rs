//! TQ1_0: 256 values −1, 0 or 1 under one scale, five to a byte; y = d · q.

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at};

/// 54 bytes for 256 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockTq1_0 {
    /// Bytes of five digits. Digit n of byte j is value 32n + j for j below 32, and value 160 + 16n + (j − 32) for the
    /// others.
    pub qs: [u8; 48],
    /// Bytes of four digits. Digit n of byte j is value 240 + 4n + j.
    pub qh: [u8; 4],
    /// Scale, binary16.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<BlockTq1_0>() == 54 && align_of::<BlockTq1_0>() == 1);

/// Powers of three: what moves digit n of a byte to the front.
const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

/// Digit n of a byte, less 1. A byte is a fraction of 256 in base three, its first digit 0.
fn digit(byte: u8, n: usize) -> i16 {
    let front = u16::from(byte.wrapping_mul(POWERS[n]));
    ((front * 3) >> 8).cast_signed() - 1
}

/// y = d · q.
pub fn integers(block: &BlockTq1_0, out: &mut Integers) {
    out.scale = f16_at(block.d);
    let (long, short) = block.qs.split_at(32);
    for (first, bytes, digits) in [(0, long, 5), (160, short, 5), (240, &block.qh[..], 4)] {
        for n in 0..digits {
            for (j, byte) in bytes.iter().enumerate() {
                out.q[first + n * bytes.len() + j] = digit(*byte, n);
            }
        }
    }
}
