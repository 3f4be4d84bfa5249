//! Formats with minima: Q4_1 and Q5_1 with a scale and an offset of either sign, Q2_K Q4_K Q5_K with a scale and a minimum
//! (never below 0) a sub-block, integers under two more.

use super::levels::{REPEATS, inverse, nearest_whole};
use super::{rounded_f16, sub_blocks};
use crate::quant::Integers;

/// Steps of the search for a sub-block's scale, on each side.
const STEPS: i32 = 10;
/// Rounds of the search for a super-block's two scales.
const ROUNDS: usize = 3;
/// Elements that are summed side by side.
const LANES: usize = 8;

/// y = scale · q − min.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    scale: f32,
    min: f32,
}

/// What a format may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    /// The largest q; the smallest is 0.
    pub top: f32,
    /// Whether a minimum may not be below 0: y begins at 0 or lower.
    pub from_zero: bool,
}

/// The code of an element.
#[inline]
fn code(x: f32, line: Line, inverse: f32, top: f32) -> f32 {
    nearest_whole((x + line.min) * inverse).max(0.0).min(top)
}

/// Σ w·(scale·q − min − x)².
fn error(x: &[f32], w: &[f32], line: Line, top: f32) -> f32 {
    let inverse = inverse(line.scale);
    let mut sum = [0.0f32; LANES];
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let off = line.scale * code(x[i], line, inverse, top) - line.min - x[i];
            sum[i] += w[i] * off * off;
        }
    }
    sum.iter().sum()
}

/// The least-squares line through the codes that `line` gives, and how much of Σ w·x² it explains.
fn refit(x: &[f32], w: &[f32], line: Line, (sw, sx): (f64, f64), range: Range) -> Option<(f64, Line)> {
    let inverse = inverse(line.scale);
    let (mut q1, mut q2, mut qx) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let q = code(x[i], line, inverse, range.top);
            q1[i] += w[i] * q;
            q2[i] += w[i] * q * q;
            qx[i] += w[i] * q * x[i];
        }
    }
    let [q1, q2, qx] = [q1, q2, qx].map(|lanes| f64::from(lanes.iter().sum::<f32>()));
    let determinant = sw * q2 - q1 * q1;
    if determinant <= 0.0 {
        return None;
    }
    let (mut scale, mut offset) = ((sw * qx - q1 * sx) / determinant, (q2 * sx - q1 * qx) / determinant);
    if range.from_zero && offset > 0.0 {
        (scale, offset) = (qx / q2, 0.0);
    }
    let line = Line { scale: scale as f32, min: -offset as f32 };
    (scale > 0.0).then_some((scale * qx + offset * sx, line))
}

/// The line with the least Σ w·(scale·q − min − x)² of those tried: lines from the lowest to around the highest element, then
/// the least-squares line through the codes that this gives, and so on.
fn best_line(x: &[f32], w: &[f32], range: Range) -> Line {
    let low =
        x.iter().copied().fold(f32::INFINITY, f32::min).min(if range.from_zero { 0.0 } else { f32::MAX });
    let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let width = high - low;
    if width <= 0.0 || !width.is_finite() {
        return Line { scale: 0.0, min: -low };
    }
    let sum = |term: &dyn Fn(usize) -> f32| (0..x.len()).map(|i| f64::from(term(i))).sum::<f64>();
    let sums = (sum(&|i| w[i]), sum(&|i| w[i] * x[i]));
    let mut best = (f64::NEG_INFINITY, Line { scale: width / range.top, min: -low });
    for step in -STEPS..=STEPS {
        let levels = range.top + step as f32 / STEPS as f32;
        let start = Line { scale: width / levels, min: -low };
        if let Some(found) = refit(x, w, start, sums, range)
            && found.0 > best.0
        {
            best = found;
        }
    }
    for _ in 0..REPEATS {
        match refit(x, w, best.1, sums, range) {
            Some(found) if found.0 > best.0 => best = found,
            _ => break,
        }
    }
    best.1
}

/// Takes the codes that are nearest under these scales and minima.
fn take_codes(x: &[f32], top: f32, out: &mut Integers) {
    let sub_elems = out.sub_elems;
    for (s, (x, q)) in x.chunks(sub_elems).zip(out.q.chunks_mut(sub_elems)).enumerate() {
        let line = Line {
            scale: out.scale * f32::from(out.sub_scales[s]),
            min: out.min * f32::from(out.sub_mins[s]),
        };
        let inverse = inverse(line.scale);
        for (q, x) in q.iter_mut().zip(x) {
            *q = code(*x, line, inverse, top) as i16;
        }
    }
}

/// A block under two binary16s.
pub(super) fn one_line(range: Range, x: &[f32], w: &[f32], out: &mut Integers) {
    let line = best_line(x, w, range);
    (out.scale, out.min) = (rounded_f16(line.scale), rounded_f16(line.min));
    take_codes(x, range.top, out);
}

/// A super-block whose sub-blocks' scales and minima are integers from 0 to `most` under two binary16s.
pub(super) fn integer_lines(range: Range, most: i16, x: &[f32], w: &[f32], out: &mut Integers) {
    let sub_elems = out.sub_elems;
    let mut wanted = [Line::default(); 16];
    for (wanted, (x, w)) in wanted.iter_mut().zip(sub_blocks(sub_elems, x, w)) {
        *wanted = best_line(x, w, range);
    }
    let largest = |of: fn(&Line) -> f32| wanted.iter().map(of).fold(0.0, f32::max);
    // The integers that suit two scales best, and their error.
    let fit = |of: Line| {
        let (mut total, mut scales, mut mins) = (0.0, [0i16; 16], [0i16; 16]);
        let near =
            |wanted: f32, unit: f32| nearest_whole(wanted * inverse(unit)).clamp(0.0, most.into()) as i16;
        for (s, (x, w)) in sub_blocks(sub_elems, x, w).enumerate() {
            let (scale, min) = (near(wanted[s].scale, of.scale), near(wanted[s].min, of.min));
            let mut least = f32::INFINITY;
            for scale in (scale - 1).max(0)..=(scale + 1).min(most) {
                for min in (min - 1).max(0)..=(min + 1).min(most) {
                    let line = Line { scale: of.scale * f32::from(scale), min: of.min * f32::from(min) };
                    let error = error(x, w, line, range.top);
                    if error < least {
                        (least, scales[s], mins[s]) = (error, scale, min);
                    }
                }
            }
            total += least;
        }
        (total, of, scales, mins)
    };
    let start = Line {
        scale: rounded_f16(largest(|line| line.scale) / f32::from(most)),
        min: rounded_f16(largest(|line| line.min) / f32::from(most)),
    };
    let mut best = fit(start);
    for _ in 0..ROUNDS {
        (out.scale, out.min, out.sub_scales, out.sub_mins) = (best.1.scale, best.1.min, best.2, best.3);
        take_codes(x, range.top, out);
        let Some(line) = least_squares(x, w, out) else { break };
        let found = fit(line);
        if found.0 >= best.0 {
            break;
        }
        best = found;
    }
    (out.scale, out.min, out.sub_scales, out.sub_mins) = (best.1.scale, best.1.min, best.2, best.3);
    take_codes(x, range.top, out);
}

/// The two scales with the least squares for these integers, rounded; `None` where they do not determine them.
fn least_squares(x: &[f32], w: &[f32], integers: &Integers) -> Option<Line> {
    let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0.0f64, 0.0f64, 0.0f64, 0.0f64, 0.0f64);
    for i in 0..x.len() {
        let s = i / integers.sub_elems;
        let (w, x) = (f64::from(w[i]), f64::from(x[i]));
        let a = f64::from(i32::from(integers.sub_scales[s]) * i32::from(integers.q[i]));
        let b = -f64::from(integers.sub_mins[s]);
        aa += w * a * a;
        ab += w * a * b;
        bb += w * b * b;
        ax += w * a * x;
        bx += w * b * x;
    }
    let determinant = aa * bb - ab * ab;
    let (scale, min) = match determinant > 1e-9 * aa * bb {
        true => ((ax * bb - bx * ab) / determinant, (bx * aa - ax * ab) / determinant),
        false if aa > 0.0 => (ax / aa, f64::from(integers.min)),
        false => return None,
    };
    (scale > 0.0 && min >= 0.0)
        .then(|| Line { scale: rounded_f16(scale as f32), min: rounded_f16(min as f32) })
}
