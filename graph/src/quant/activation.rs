//! The 8-bit activations: their definition, and which weights they meet.
//!
//! Two block lengths are defined, 32 and 256 elements. A block x of n elements becomes a scale and n signed bytes:
//!
//! - if any x is not finite: scale = NaN and all q = 0, so that what was broken stays visible;
//! - else with a = max |x|: if a = 0, scale = 0 and all q = 0;
//! - else scale = a / 127 and q = round-ties-even(x · (127 / a)), which lies in −127..127. All in f32.
//!
//! The decoded value is q · scale. A matmul on 8-bit activations is the dot product of the decoded weights with the
//! decoded activations, up to f32 rounding of partial sums; integer sums under one scale of both (`Format::scale_elems`) are exact. The reference backend
//! fixes the order of the partial sums, and the CPU backend follows it to the bit.
//!
//! Where 127 / a would overflow (a below about 4e-37, subnormal territory), the block counts as zero: scale = 0.

use std::fmt;

use bytemuck::{Pod, Zeroable};
use serde::{Serialize, Serializer};

use super::Format;

/// 32 activations: 36 bytes.
#[derive(Clone, Copy, Pod, Zeroable, PartialEq, Debug)]
#[repr(C)]
pub struct ActQ8x32 {
    /// Value of one step; NaN where an element was not finite.
    pub scale: f32,
    /// Steps, −127..127.
    pub q: [i8; 32],
}

/// 256 activations: 292 bytes.
#[derive(Clone, Copy, Pod, Zeroable, PartialEq, Debug)]
#[repr(C)]
pub struct ActQ8x256 {
    /// Value of one step; NaN where an element was not finite.
    pub scale: f32,
    /// Steps, −127..127.
    pub q: [i8; 256],
    /// Sums of 16 consecutive steps: what a sub-block's minimum is multiplied with.
    pub sums: [i16; 16],
}

const _: () = assert!(size_of::<ActQ8x32>() == 36 && size_of::<ActQ8x256>() == 292);

/// Scale and 1 / scale of a block, by the definition above. The second is NaN exactly where the first is.
fn scale_of(block: &[f32]) -> (f32, f32) {
    let mut amax = 0f32;
    let mut finite = true;
    for &x in block {
        amax = amax.max(x.abs());
        finite &= x.is_finite();
    }
    if !finite {
        return (f32::NAN, f32::NAN);
    }
    let inverse = 127.0 / amax;
    if inverse.is_finite() { (amax / 127.0, inverse) } else { (0.0, 0.0) }
}

/// One step count: 0 where `inverse` is NaN.
fn step(x: f32, inverse: f32) -> i8 {
    (x * inverse).round_ties_even() as i8 // saturating, and NaN becomes 0
}

/// Quantizes whole blocks of 32. `out` has one element for every 32 of `x`; lengths that do not agree panic.
pub fn quantize_x32(x: &[f32], out: &mut [ActQ8x32]) {
    assert_eq!(x.len(), out.len() * 32, "activations and blocks of 32");
    for (x, y) in x.chunks_exact(32).zip(out) {
        let (scale, inverse) = scale_of(x);
        y.scale = scale;
        for (q, &x) in y.q.iter_mut().zip(x) {
            *q = step(x, inverse);
        }
    }
}

/// Quantizes whole blocks of 256. `out` has one element for every 256 of `x`; lengths that do not agree panic.
pub fn quantize_x256(x: &[f32], out: &mut [ActQ8x256]) {
    assert_eq!(x.len(), out.len() * 256, "activations and blocks of 256");
    for (x, y) in x.chunks_exact(256).zip(out) {
        let (scale, inverse) = scale_of(x);
        y.scale = scale;
        for (q, &x) in y.q.iter_mut().zip(x) {
            *q = step(x, inverse);
        }
        for (sum, q) in y.sums.iter_mut().zip(y.q.chunks_exact(16)) {
            *sum = q.iter().map(|&q| i16::from(q)).sum(); // at most 16 · 127
        }
    }
}

/// The values that the blocks stand for: q · scale. `out` has 32 elements per block; lengths that do not agree panic.
pub fn dequantize_x32(blocks: &[ActQ8x32], out: &mut [f32]) {
    assert_eq!(out.len(), blocks.len() * 32, "activations and blocks of 32");
    for (block, y) in blocks.iter().zip(out.chunks_exact_mut(32)) {
        for (y, &q) in y.iter_mut().zip(&block.q) {
            *y = f32::from(q) * block.scale;
        }
    }
}

/// The values that the blocks stand for: q · scale. `out` has 256 elements per block; lengths that do not agree panic.
pub fn dequantize_x256(blocks: &[ActQ8x256], out: &mut [f32]) {
    assert_eq!(out.len(), blocks.len() * 256, "activations and blocks of 256");
    for (block, y) in blocks.iter().zip(out.chunks_exact_mut(256)) {
        for (y, &q) in y.iter_mut().zip(&block.q) {
            *y = f32::from(q) * block.scale;
        }
    }
}

/// Length of an 8-bit activation block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ActBlock {
    /// 32 elements: [`ActQ8x32`].
    X32,
    /// 256 elements: [`ActQ8x256`].
    X256,
}

impl ActBlock {
    /// Elements of a block.
    pub const fn elems(self) -> usize {
        match self {
            ActBlock::X32 => 32,
            ActBlock::X256 => 256,
        }
    }
}

/// The number of its elements.
impl Serialize for ActBlock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.elems() as u64)
    }
}

/// What a backend's quantized matmuls take as activations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ActProfile {
    /// f32, without 16-bit matrix units.
    F32,
    /// Rounded to f16.
    F16,
    /// 8-bit steps, as this module defines them.
    Q8 {
        /// Block length for weights in super-blocks of 256; others have 32 always.
        k_block: ActBlock,
    },
}

/// What the activations of one matmul are, given its weights' format.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ActivationPrecision {
    /// As they are.
    F32,
    /// Rounded to f16, ties to even.
    F16,
    /// 8-bit steps in blocks of this length.
    Q8(ActBlock),
}

impl ActProfile {
    /// The activations that weights of `format` are multiplied with. Plain floats take f32 always.
    pub const fn for_weights(self, format: Format) -> ActivationPrecision {
        if !format.is_quantized() {
            return ActivationPrecision::F32;
        }
        match self {
            ActProfile::F32 => ActivationPrecision::F32,
            ActProfile::F16 => ActivationPrecision::F16,
            ActProfile::Q8 { k_block } if format.block_elems() == 256 => ActivationPrecision::Q8(k_block),
            ActProfile::Q8 { .. } => ActivationPrecision::Q8(ActBlock::X32),
        }
    }

    /// The block length for weights in super-blocks; `None` where activations are not 8-bit.
    pub const fn super_block(self) -> Option<ActBlock> {
        match self {
            ActProfile::Q8 { k_block } => Some(k_block),
            ActProfile::F32 | ActProfile::F16 => None,
        }
    }

    /// As the command line has it: "f32", "f16", "q8"; the block length is the backend's.
    pub const fn name(self) -> &'static str {
        match self {
            ActProfile::F32 => "f32",
            ActProfile::F16 => "f16",
            ActProfile::Q8 { .. } => "q8",
        }
    }
}

/// With the block length for super-blocks: "q8/256".
impl fmt::Display for ActProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ActProfile::Q8 { k_block } => write!(f, "q8/{}", k_block.elems()),
            other => f.write_str(other.name()),
        }
    }
}

impl Serialize for ActProfile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of `n` with one period of a triangle wave and its extremes at ±`amax`.
    fn wave(n: usize, amax: f32) -> Vec<f32> {
        (0..n).map(|i| amax * ((i as f32 * 4.0 / n as f32 - 2.0).abs() - 1.0)).collect()
    }

    #[test]
    fn steps_are_rounded_to_even_and_bounded() {
        // amax 127 makes steps of exactly 1, so the halves show the rounding.
        let mut x = vec![0.0; 32];
        x[..8].copy_from_slice(&[127.0, -127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5]);
        let mut block = [ActQ8x32::zeroed()];
        quantize_x32(&x, &mut block);
        assert_eq!(block[0].scale, 1.0);
        assert_eq!(block[0].q[..8], [127, -127, 0, 2, 2, 0, -2, 126]);
        assert!(block[0].q[8..].iter().all(|&q| q == 0));
    }

    #[test]
    fn decoded_values_are_within_half_a_step() {
        for amax in [1e-30f32, 0.37, 1.0, 3e5, 1e38] {
            let x = wave(512, amax);
            let (mut small, mut large) = (vec![ActQ8x32::zeroed(); 16], vec![ActQ8x256::zeroed(); 2]);
            quantize_x32(&x, &mut small);
            quantize_x256(&x, &mut large);
            let (mut y32, mut y256) = (vec![0.0; 512], vec![0.0; 512]);
            dequantize_x32(&small, &mut y32);
            dequantize_x256(&large, &mut y256);
            for i in 0..512 {
                for (y, scale) in [(y32[i], small[i / 32].scale), (y256[i], large[i / 256].scale)] {
                    // Half a step, and a few roundings of f32.
                    let bound = f64::from(scale) * 0.5 + f64::from(x[i].abs()) * 1e-6;
                    assert!((f64::from(y) - f64::from(x[i])).abs() <= bound, "{amax} [{i}]: {} {y}", x[i]);
                }
            }
        }
    }

    #[test]
    fn sums_are_those_of_sixteen_steps() {
        let mut block = [ActQ8x256::zeroed()];
        quantize_x256(&wave(256, 3.0), &mut block);
        for (sum, q) in block[0].sums.iter().zip(block[0].q.chunks(16)) {
            assert_eq!(i32::from(*sum), q.iter().map(|&q| i32::from(q)).sum::<i32>());
        }
        quantize_x256(&[-5.0; 256], &mut block);
        assert_eq!(block[0].sums, [-127 * 16; 16]);
    }

    #[test]
    fn zero_and_vanishing_blocks_are_zero() {
        for x in [0.0, -0.0, f32::from_bits(1), 1e-38] {
            let mut block = [ActQ8x32::zeroed()];
            quantize_x32(&[x; 32], &mut block);
            assert_eq!((block[0].scale, block[0].q), (0.0, [0; 32]), "{x:e}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = wave(256, 1.0);
            x[77] = bad;
            let (mut small, mut large) = (vec![ActQ8x32::zeroed(); 8], [ActQ8x256::zeroed()]);
            quantize_x32(&x, &mut small);
            quantize_x256(&x, &mut large);
            assert!(large[0].scale.is_nan() && large[0].q == [0; 256] && large[0].sums == [0; 16]);
            for (i, block) in small.iter().enumerate() {
                assert_eq!(block.scale.is_nan(), i == 77 / 32);
            }
            let mut y = vec![0.0; 256];
            dequantize_x256(&large, &mut y);
            assert!(y.iter().all(|y| y.is_nan()));
        }
    }

    #[test]
    fn plain_floats_take_f32_and_short_blocks_take_32() {
        let q8 = ActProfile::Q8 { k_block: ActBlock::X256 };
        assert_eq!(q8.for_weights(Format::Bf16), ActivationPrecision::F32);
        assert_eq!(q8.for_weights(Format::Q8_0), ActivationPrecision::Q8(ActBlock::X32));
        assert_eq!(q8.for_weights(Format::Iq4Xs), ActivationPrecision::Q8(ActBlock::X256));
        assert_eq!(ActProfile::F16.for_weights(Format::F32), ActivationPrecision::F32);
        assert_eq!(ActProfile::F16.for_weights(Format::Q4K), ActivationPrecision::F16);
    }
}
