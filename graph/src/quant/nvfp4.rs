//! NVFP4: 64 floats of 4 bits (E2M1) in 4 sub-blocks of 16, each under an 8-bit float of its own (E4M3 without sign).

use bytemuck::{Pod, Zeroable};

use super::{Integers, mxfp4::TABLE};

/// 36 bytes for 64 values.
#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct BlockNvfp4 {
    /// The sub-blocks' scales: three bits of mantissa, four of exponent. The eighth says nothing.
    pub d: [u8; 4],
    /// Sub-block s has bytes 8s and up: low nibbles are its values 0–7, high nibbles its values 8–15.
    pub qs: [u8; 32],
}

const _: () = assert!(size_of::<BlockNvfp4>() == 36 && align_of::<BlockNvfp4>() == 1);

/// The scale that is a NaN in the OCP's definition, and 0 in ggml's.
pub const NAN_SCALE: u8 = 0x7f;

/// Half the scale. [`NAN_SCALE`] is 0 as in ggml, and as there only without its eighth bit.
pub const fn half_scale(bits: u8) -> f32 {
    let (exponent, mantissa) = ((bits >> 3 & 15) as u32, (bits & 7) as u32);
    match (bits, exponent) {
        (NAN_SCALE, _) => 0.0,
        (_, 0) => mantissa as f32 * f32::from_bits((127 - 10) << 23),
        // 2^(exponent − 7) · (1 + mantissa / 8) / 2.
        _ => f32::from_bits((exponent + 127 - 8) << 23 | mantissa << 20),
    }
}

/// [`half_scale`] of every byte.
pub static HALF_SCALES: [f32; 256] = {
    let mut scales = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        scales[bits] = half_scale(bits as u8);
        bits += 1;
    }
    scales
};

/// y = (scale / 2) · (2 · code's value), of sub-block `sub`.
pub fn integers(block: &BlockNvfp4, sub: usize, out: &mut Integers) {
    out.scale = half_scale(block.d[sub]);
    for (j, packed) in block.qs[8 * sub..][..8].iter().enumerate() {
        out.q[j] = i16::from(TABLE[usize::from(packed & 0x0f)]);
        out.q[j + 8] = i16::from(TABLE[usize::from(packed >> 4)]);
    }
}
