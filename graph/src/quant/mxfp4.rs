//! MXFP4: 32 floats of 4 bits (E2M1) under a power-of-two scale of 8 bits (E8M0); the OCP microscaling format.

use bytemuck::{Pod, Zeroable};

use super::Integers;

/// Twice the values that the 16 codes stand for (0, ½, 1, 1½, 2, 3, 4, 6 and their negatives), so that they are integers;
/// the scale is halved to match.
pub const TABLE: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 17 bytes for 32 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockMxfp4 {
    /// Biased exponent of the scale.
    pub e: u8,
    /// Low nibbles are values 0–15, high nibbles values 16–31.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockMxfp4>() == 17 && align_of::<BlockMxfp4>() == 1);

/// Half the scale: 2^(e − 128). Exponents 0 and 1 give subnormals; 255, a NaN in the OCP's definition, is 2^127 as in
/// ggml.
pub fn half_scale(e: u8) -> f32 {
    match e {
        0 | 1 => f32::from_bits(0x0020_0000 << e), // 2^-128, 2^-127
        _ => f32::from_bits(u32::from(e - 1) << 23),
    }
}

/// y = (2^(e − 127) / 2) · (2 · code's value).
pub fn integers(block: &BlockMxfp4, out: &mut Integers) {
    out.scale = half_scale(block.e);
    for j in 0..16 {
        out.q[j] = i16::from(TABLE[usize::from(block.qs[j] & 0x0f)]);
        out.q[j + 16] = i16::from(TABLE[usize::from(block.qs[j] >> 4)]);
    }
}

/// What is added to the exponent of half the scale.
pub(super) const BIAS: i32 = 128;
/// The largest exponent under which every code is a finite number.
pub(super) const LARGEST: u8 = 252;

/// The code of twice a value: zero's is the positive one.
fn code_of(value: i16) -> u8 {
    TABLE.iter().position(|level| i16::from(*level) == value).unwrap_or(0) as u8
}

/// The block of these integers: what [`integers`] takes apart. The scale is one that [`half_scale`] gives.
pub(super) fn pack(from: &Integers) -> BlockMxfp4 {
    let e = match (from.scale.to_bits() >> 23) as u8 {
        0 => (from.scale.to_bits() >> 22) as u8, // subnormal: 2^-128 or 2^-127
        exponent => exponent + 1,
    };
    BlockMxfp4 { e, qs: std::array::from_fn(|j| code_of(from.q[j]) | code_of(from.q[j + 16]) << 4) }
}
