//! Formats of levels under scales: Q4_0 Q5_0 Q8_0 IQ4_NL MXFP4 with one scale a block, Q3_K Q6_K IQ4_XS with a scale a
//! sub-block, itself an integer under one more.

use super::levels::{Levels, best_scale, error, farthest, inverse, nearest_whole};
use super::{rounded_f16, sub_blocks};
use crate::quant::{Integers, mxfp4};

/// Rounds of the search for the scale of scales.
const ROUNDS: usize = 3;

/// Takes the levels that are nearest under these scales.
fn take_levels<L: Levels>(levels: L, x: &[f32], out: &mut Integers) {
    let sub_elems = out.sub_elems;
    for (s, (x, q)) in x.chunks(sub_elems).zip(out.q.chunks_mut(sub_elems)).enumerate() {
        let inverse = inverse(out.scale * f32::from(out.sub_scales[s]));
        for (q, x) in q.iter_mut().zip(x) {
            *q = levels.nearest(x * inverse) as i16;
        }
    }
}

/// A block under one binary16.
pub(super) fn one_scale<L: Levels>(levels: L, x: &[f32], w: &[f32], out: &mut Integers) {
    out.scale = rounded_f16(best_scale(levels, x, w));
    take_levels(levels, x, out);
}

/// A block under a power of two.
pub(super) fn power_of_two<L: Levels>(levels: L, x: &[f32], w: &[f32], out: &mut Integers) {
    let far = farthest(x).abs();
    // In units of a power of two near the largest element, so that squares are numbers whatever the exponent is.
    let unit = f32::from_bits(far.to_bits() & 0x7f80_0000).max(f32::MIN_POSITIVE);
    let mut in_units = [0.0; 32];
    in_units.iter_mut().zip(x).for_each(|(to, x)| *to = x / unit);
    // The exponent at which the largest element is just below the last level, and those beside it.
    let near = ((far / levels.ends()[1]).log2().ceil() as i32).saturating_add(mxfp4::BIAS);
    let near = near.clamp(0, mxfp4::LARGEST.into());
    let mut best = (f32::INFINITY, 0);
    for e in near - 2..=near + 1 {
        let Some(e) = u8::try_from(e).ok().filter(|e| *e <= mxfp4::LARGEST) else { continue };
        let error = error(levels, &in_units, w, mxfp4::half_scale(e) / unit);
        if error < best.0 {
            best = (error, e);
        }
    }
    out.scale = mxfp4::half_scale(best.1);
    take_levels(levels, x, out);
}

/// A super-block whose sub-blocks' scales are integers from `low` to `high` under a binary16.
pub(super) fn integer_scales<L: Levels>(
    levels: L,
    (low, high): (i16, i16),
    x: &[f32],
    w: &[f32],
    out: &mut Integers,
) {
    let sub_elems = out.sub_elems;
    let mut wanted = [0.0; 16];
    for (wanted, (x, w)) in wanted.iter_mut().zip(sub_blocks(sub_elems, x, w)) {
        *wanted = best_scale(levels, x, w);
    }
    let far = farthest(&wanted);
    let mut best = (f32::INFINITY, 0.0, [0i16; 16]);
    // The integers that suit a scale best, and their error.
    let fit = |scale: f32| {
        let (mut total, mut sub_scales) = (0.0, [0i16; 16]);
        for (s, (x, w)) in sub_blocks(sub_elems, x, w).enumerate() {
            let near = nearest_whole(wanted[s] * inverse(scale)).clamp(low.into(), high.into()) as i16;
            let mut least = f32::INFINITY;
            for sub_scale in (near - 1).max(low)..=(near + 1).min(high) {
                let error = error(levels, x, w, scale * f32::from(sub_scale));
                if error < least {
                    (least, sub_scales[s]) = (error, sub_scale);
                }
            }
            total += least;
        }
        (total, scale, sub_scales)
    };
    for end in [low, low + 1, high] {
        let found = fit(rounded_f16(far / f32::from(end)));
        if found.0 < best.0 {
            best = found;
        }
    }
    for _ in 0..ROUNDS {
        (out.scale, out.sub_scales) = (best.1, best.2);
        take_levels(levels, x, out);
        // The least-squares scale of these integers.
        let (mut p, mut n) = (0.0f64, 0.0f64);
        for i in 0..x.len() {
            let q = f64::from(i32::from(out.sub_scales[i / sub_elems]) * i32::from(out.q[i]));
            p += f64::from(w[i] * x[i]) * q;
            n += f64::from(w[i]) * q * q;
        }
        let found = fit(rounded_f16(if n > 0.0 { (p / n) as f32 } else { 0.0 }));
        if found.0 >= best.0 {
            break;
        }
        best = found;
    }
    (out.scale, out.sub_scales) = (best.1, best.2);
    take_levels(levels, x, out);
}
