//! IQ4_NL: 32 values of 4 bits into a table of unequal steps, under one scale; y = d · `table[q]`.

use bytemuck::{Pod, Zeroable};

use super::{Integers, f16_at, f16_bytes};

/// The values that the 16 codes of IQ4_NL and IQ4_XS stand for: denser around zero, where weights are.
pub const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 18 bytes for 32 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockIq4Nl {
    /// Scale, binary16.
    pub d: [u8; 2],
    /// Low nibbles are values 0–15, high nibbles values 16–31.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockIq4Nl>() == 18 && align_of::<BlockIq4Nl>() == 1);

/// y = d · `table[q]`.
pub fn integers(block: &BlockIq4Nl, out: &mut Integers) {
    out.scale = f16_at(block.d);
    for j in 0..16 {
        out.q[j] = i16::from(TABLE[usize::from(block.qs[j] & 0x0f)]);
        out.q[j + 16] = i16::from(TABLE[usize::from(block.qs[j] >> 4)]);
    }
}

/// The code of one of the table's values.
pub(super) fn code_of(value: i16) -> u8 {
    TABLE.partition_point(|level| i16::from(*level) < value) as u8
}

/// The block of these integers: what [`integers`] takes apart.
pub(super) fn pack(from: &Integers) -> BlockIq4Nl {
    BlockIq4Nl {
        d: f16_bytes(from.scale),
        qs: std::array::from_fn(|j| code_of(from.q[j]) | code_of(from.q[j + 16]) << 4),
    }
}
