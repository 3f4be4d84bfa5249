//! Random blocks of every format, with scales that give a wanted spread.
//!
//! The codes are random bytes; only the scales are computed, from the root mean square of uniform codes. Values have mean
//! zero: where codes are lopsided, scales have random signs, and where there is a minimum it is half the codes' range.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::Random;
use crate::quant::{
    Format, iq1_m::BlockIq1M, iq1_m::set_scale, iq1_s::BlockIq1S, iq2_s::BlockIq2S, iq2_xs::BlockIq2Xs,
    iq2_xxs::BlockIq2Xxs, iq3_s::BlockIq3S, iq3_xxs::BlockIq3Xxs, iq4_nl::BlockIq4Nl, iq4_xs::BlockIq4Xs,
    mxfp4::BlockMxfp4, nvfp4, q1_0::BlockQ1_0, q2_0::BlockQ2_0, q2_k::BlockQ2K, q3_k::BlockQ3K,
    q4_0::BlockQ4_0, q4_1::BlockQ4_1, q4_k::BlockQ4K, q5_0::BlockQ5_0, q5_1::BlockQ5_1, q5_k::BlockQ5K,
    q6_k::BlockQ6K, q8_0::BlockQ8_0, tq1_0::BlockTq1_0, tq2_0::BlockTq2_0,
};

/// Root mean squares of what uniform random codes stand for.
mod of {
    /// −8..7, and 0..15 less 7.5 (4.61).
    pub const Q4: f32 = 4.64;
    /// −16..15, and 0..31 less 15.5 (9.23).
    pub const Q5: f32 = 9.25;
    /// −32..31.
    pub const Q6: f32 = 18.5;
    /// −128..127.
    pub const Q8: f32 = 73.9;
    /// 0..3 less 1.5.
    pub const Q2: f32 = 1.118;
    /// −4..3.
    pub const Q3: f32 = 2.345;
    /// The 16 steps of IQ4_NL.
    pub const IQ4: f32 = 69.0;
    /// The 16 values of E2M1.
    pub const E2M1: f32 = 2.93;
    /// 8, 25 and 43 as IQ2_XXS's grid has them, and in the mean of IQ2_XS's and IQ2_S's.
    pub const IQ2_XXS: f32 = 23.1;
    pub const IQ2: f32 = 24.3;
    /// The numbers of the IQ3 grids.
    pub const IQ3_XXS: f32 = 30.8;
    pub const IQ3_S: f32 = 7.59;
    /// Eight times the IQ1 grid's, and 1 more or less.
    pub const IQ1: f32 = 6.25;
    /// −1..1.
    pub const TERNARY: f32 = 0.816;
    /// −1..2.
    pub const TQ2: f32 = 1.225;
    /// 1, 3, …, 31.
    pub const ODD4: f32 = 18.5;
    /// 1, 3, …, 15.
    pub const ODD3: f32 = 9.22;
    /// 8..15.
    pub const SCALE4_UPPER: f32 = 11.7;
    /// 32..63.
    pub const SCALE6_UPPER: f32 = 48.4;
}

/// A block scale: `mean` times 0.75 to 1.25, as binary16.
fn scale(mean: f32, random: &mut Random) -> f16 {
    f16::from_f32(mean * (1.0 + 0.25 * random.signed_unit()))
}

/// The same with a random sign.
fn signed_scale(mean: f32, random: &mut Random) -> f16 {
    let scale = scale(mean, random);
    if random.next_u64() & 1 == 0 { scale } else { -scale }
}

fn times(scale: f16, factor: f32) -> [u8; 2] {
    f16::from_f32(scale.to_f32() * factor).to_le_bytes()
}

/// Gives every block random bytes, then lets `finish` set its scales.
fn blocks<B: Pod + Zeroable>(out: &mut [u8], random: &mut Random, finish: impl Fn(&mut B, &mut Random)) {
    random.bytes(out);
    for block in bytemuck::cast_slice_mut(out) {
        finish(block, random);
    }
}

/// Sub-block scales of Q4_K and Q5_K, from random bytes: each 32..63, each minimum equal to its scale.
fn equal_scales_and_mins(packed: &mut [u8; 12]) {
    for s in 0..4 {
        packed[s] = packed[s] & 0x5f | 0xa0; // sub-block s: 1xxxxx; upper bits of sub-block s + 4: 1x
        packed[s + 4] = packed[s];
        packed[s + 8] = packed[s + 8] & 0x0f | packed[s + 8] << 4;
    }
}

/// The 8-bit scale of NVFP4 that is nearest, 0 excepted.
fn nearest_e4m3(scale: f32) -> u8 {
    let distance = |bits: &u8| (2.0 * nvfp4::half_scale(*bits) - scale).abs();
    (1..nvfp4::NAN_SCALE).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(1)
}

/// Fills `out`, whole blocks of `format`, with values of mean 0 and root mean square about `rms` (MXFP4, whose scales are
/// powers of two, and NVFP4, whose scales are coarse below 1/64 and end at 1/512: within a factor of √2).
///
/// A length that is no multiple of the block's is a mistake of the caller, and panics.
pub fn fill(format: Format, rms: f32, random: &mut Random, out: &mut [u8]) {
    let uniform = |random: &mut Random| random.signed_unit() * rms * 3f32.sqrt();
    match format {
        Format::F32 => {
            bytemuck::cast_slice_mut(out)
                .iter_mut()
                .for_each(|y: &mut [u8; 4]| *y = uniform(random).to_le_bytes());
        }
        Format::F16 => {
            let value = |random: &mut Random| f16::from_f32(uniform(random)).to_le_bytes();
            bytemuck::cast_slice_mut(out).iter_mut().for_each(|y: &mut [u8; 2]| *y = value(random));
        }
        Format::Bf16 => {
            let value = |random: &mut Random| half::bf16::from_f32(uniform(random)).to_le_bytes();
            bytemuck::cast_slice_mut(out).iter_mut().for_each(|y: &mut [u8; 2]| *y = value(random));
        }
        Format::Q4_0 => blocks(out, random, |b: &mut BlockQ4_0, random| {
            b.d = signed_scale(rms / of::Q4, random).to_le_bytes();
        }),
        Format::Q4_1 => blocks(out, random, |b: &mut BlockQ4_1, random| {
            let d = scale(rms / of::Q4, random);
            (b.d, b.m) = (d.to_le_bytes(), times(d, -7.5));
        }),
        Format::Q5_0 => blocks(out, random, |b: &mut BlockQ5_0, random| {
            b.d = signed_scale(rms / of::Q5, random).to_le_bytes();
        }),
        Format::Q5_1 => blocks(out, random, |b: &mut BlockQ5_1, random| {
            let d = scale(rms / of::Q5, random);
            (b.d, b.m) = (d.to_le_bytes(), times(d, -15.5));
        }),
        Format::Q8_0 => blocks(out, random, |b: &mut BlockQ8_0, random| {
            b.d = signed_scale(rms / of::Q8, random).to_le_bytes();
        }),
        Format::Q2K => blocks(out, random, |b: &mut BlockQ2K, random| {
            for packed in &mut b.scales {
                let upper = *packed & 0x07 | 0x08;
                *packed = upper | upper << 4;
            }
            let d = scale(rms / (of::SCALE4_UPPER * of::Q2), random);
            (b.d, b.dmin) = (d.to_le_bytes(), times(d, 1.5));
        }),
        Format::Q3K => blocks(out, random, |b: &mut BlockQ3K, random| {
            b.d = signed_scale(rms / (of::Q6 * of::Q3), random).to_le_bytes();
        }),
        Format::Q4K => blocks(out, random, |b: &mut BlockQ4K, random| {
            equal_scales_and_mins(&mut b.scales);
            let d = scale(rms / (of::SCALE6_UPPER * of::Q4), random);
            (b.d, b.dmin) = (d.to_le_bytes(), times(d, 7.5));
        }),
        Format::Q5K => blocks(out, random, |b: &mut BlockQ5K, random| {
            equal_scales_and_mins(&mut b.scales);
            let d = scale(rms / (of::SCALE6_UPPER * of::Q5), random);
            (b.d, b.dmin) = (d.to_le_bytes(), times(d, 15.5));
        }),
        Format::Q6K => blocks(out, random, |b: &mut BlockQ6K, random| {
            b.d = signed_scale(rms / (of::Q8 * of::Q6), random).to_le_bytes();
        }),
        Format::Iq4Nl => blocks(out, random, |b: &mut BlockIq4Nl, random| {
            b.d = signed_scale(rms / of::IQ4, random).to_le_bytes();
        }),
        Format::Iq4Xs => blocks(out, random, |b: &mut BlockIq4Xs, random| {
            b.d = signed_scale(rms / (of::Q6 * of::IQ4), random).to_le_bytes();
        }),
        Format::Mxfp4 => {
            let exponent = (rms / of::E2M1).log2().round() + 127.0;
            blocks(out, random, |b: &mut BlockMxfp4, _| b.e = exponent as u8); // saturating
        }
        Format::Iq2Xxs => blocks(out, random, |b: &mut BlockIq2Xxs, random| {
            b.d = scale(8.0 * rms / (of::ODD4 * of::IQ2_XXS), random).to_le_bytes();
        }),
        Format::Iq2Xs => blocks(out, random, |b: &mut BlockIq2Xs, random| {
            b.d = scale(8.0 * rms / (of::ODD4 * of::IQ2), random).to_le_bytes();
        }),
        Format::Iq2S => blocks(out, random, |b: &mut BlockIq2S, random| {
            b.d = scale(8.0 * rms / (of::ODD4 * of::IQ2), random).to_le_bytes();
        }),
        Format::Iq3Xxs => blocks(out, random, |b: &mut BlockIq3Xxs, random| {
            b.d = scale(4.0 * rms / (of::ODD4 * of::IQ3_XXS), random).to_le_bytes();
        }),
        Format::Iq3S => blocks(out, random, |b: &mut BlockIq3S, random| {
            b.d = scale(rms / (of::ODD4 * of::IQ3_S), random).to_le_bytes();
        }),
        Format::Iq1S => blocks(out, random, |b: &mut BlockIq1S, random| {
            b.d = scale(8.0 * rms / (of::ODD3 * of::IQ1), random).to_le_bytes();
        }),
        Format::Iq1M => blocks(out, random, |b: &mut BlockIq1M, random| {
            set_scale(b, scale(8.0 * rms / (of::ODD3 * of::IQ1), random).to_le_bytes());
        }),
        Format::Tq1_0 => blocks(out, random, |b: &mut BlockTq1_0, random| {
            b.d = signed_scale(rms / of::TERNARY, random).to_le_bytes();
        }),
        Format::Tq2_0 => blocks(out, random, |b: &mut BlockTq2_0, random| {
            b.d = signed_scale(rms / of::TQ2, random).to_le_bytes();
        }),
        Format::Nvfp4 => {
            // Sub-blocks differ by a step up or down.
            let nearest = nearest_e4m3(rms / of::E2M1);
            blocks(out, random, |b: &mut nvfp4::BlockNvfp4, random| {
                b.d =
                    b.d.map(|_| (nearest - 1 + (random.next_u64() % 3) as u8).clamp(1, nvfp4::NAN_SCALE - 1));
            });
        }
        Format::Q1_0 => blocks(out, random, |b: &mut BlockQ1_0, random| {
            b.d = scale(rms, random).to_le_bytes();
        }),
        Format::Q2_0 => blocks(out, random, |b: &mut BlockQ2_0, random| {
            b.d = signed_scale(rms / of::TQ2, random).to_le_bytes();
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_spread_that_was_asked_for() {
        for format in Format::ALL {
            for rms in [0.02, 1.0] {
                let n = 256 * 256;
                let mut bytes = vec![0; format.row_bytes(n).unwrap()];
                fill(format, rms, &mut Random::new(&[7, format.ggml_type().into()]), &mut bytes);
                let mut y = vec![0.0; n];
                format.decode_row(&bytes, &mut y);
                let mean = y.iter().map(|&y| f64::from(y)).sum::<f64>() / n as f64;
                let found = (y.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>() / n as f64).sqrt();
                let ratio = found / f64::from(rms);
                let coarse = matches!(format, Format::Mxfp4 | Format::Nvfp4);
                let slack = if coarse { 1.42 } else { 1.1 };
                assert!(ratio < slack && ratio > 1.0 / slack, "{format}: {found} for {rms}");
                assert!(mean.abs() < 0.06 * f64::from(rms), "{format}: mean {mean} for {rms}");
            }
        }
    }

    #[test]
    fn the_same_seeds_give_the_same_bytes() {
        let bytes = |seed| {
            let mut out = [0; 288];
            fill(Format::Q4K, 1.0, &mut Random::new(&[seed, 1]), &mut out);
            out
        };
        assert_eq!(bytes(1), bytes(1));
        assert_ne!(bytes(1), bytes(2));
        assert_ne!(Random::new(&[1, 2]).next_u64(), Random::new(&[2, 1]).next_u64());
    }
}
