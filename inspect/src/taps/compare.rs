//! Two tensors, element by element: how far apart, where, and whether that is within a tolerance.

use super::number;
use serde::Serialize;

/// One element of both sides.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// Place in the flattened tensor.
    pub index: usize,
    /// Left.
    #[serde(serialize_with = "number::f64")]
    pub a: f64,
    /// Right.
    #[serde(serialize_with = "number::f64")]
    pub b: f64,
    /// |a − b|; infinite where exactly one is not finite.
    #[serde(serialize_with = "number::f64")]
    pub abs: f64,
}

/// The distance of two tensors of equal length.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Elements.
    pub elems: usize,
    /// The largest difference and where it is; `None` where all elements are equal.
    pub max: Option<Difference>,
    /// √(Σ(a−b)² / n).
    #[serde(serialize_with = "number::f64")]
    pub rms: f64,
    /// ‖a−b‖ / ‖b‖; 0 where both are zero.
    #[serde(serialize_with = "number::f64")]
    pub relative_l2: f64,
    /// a·b / (‖a‖‖b‖); 1 where both are zero.
    #[serde(serialize_with = "number::f64")]
    pub cosine: f64,
    /// NaNs on the left.
    pub nan_a: usize,
    /// NaNs on the right.
    pub nan_b: usize,
    /// Infinities on the left.
    pub inf_a: usize,
    /// Infinities on the right.
    pub inf_b: usize,
    /// Elements that are not finite on one side, or differently on each.
    pub non_finite_mismatches: usize,
    /// The largest differences, largest first.
    pub largest: Vec<Difference>,
}

impl Comparison {
    /// Whether it is within a relative L2 tolerance. A value that is not finite on one side only is always beyond.
    #[must_use]
    pub fn within(&self, tolerance: f64) -> bool {
        self.non_finite_mismatches == 0 && self.relative_l2 <= tolerance
    }
}

/// Compares `a` with `b`, the reference, in f64. `limit` largest differences are listed. Elements that are equal and not
/// finite on both sides count as equal and take no part in the sums.
///
/// The slices must be equally long: what one has more is not looked at.
#[must_use]
pub fn compare(a: &[f32], b: &[f32], limit: usize) -> Comparison {
    let (mut sum, mut aa, mut bb, mut ab) = (0f64, 0f64, 0f64, 0f64);
    let mut out = Comparison {
        elems: a.len().min(b.len()),
        max: None,
        rms: 0.0,
        relative_l2: 0.0,
        cosine: 1.0,
        nan_a: 0,
        nan_b: 0,
        inf_a: 0,
        inf_b: 0,
        non_finite_mismatches: 0,
        largest: Vec::new(),
    };
    for (index, (&x, &y)) in a.iter().zip(b).enumerate() {
        let (fx, fy) = (f64::from(x), f64::from(y));
        let abs = if x.is_finite() && y.is_finite() {
            let d = fx - fy;
            sum += d * d;
            aa += fx * fx;
            bb += fy * fy;
            ab += fx * fy;
            d.abs()
        } else {
            out.nan_a += usize::from(x.is_nan());
            out.nan_b += usize::from(y.is_nan());
            out.inf_a += usize::from(x.is_infinite());
            out.inf_b += usize::from(y.is_infinite());
            if x == y || (x.is_nan() && y.is_nan()) {
                continue;
            }
            out.non_finite_mismatches += 1;
            f64::INFINITY
        };
        if abs == 0.0 {
            continue;
        }
        let difference = Difference { index, a: fx, b: fy, abs };
        if out.max.is_none_or(|m| abs > m.abs) {
            out.max = Some(difference);
        }
        if limit > 0 && (out.largest.len() < limit || out.largest.last().is_some_and(|l| abs > l.abs)) {
            let at = out.largest.partition_point(|l| l.abs >= abs);
            out.largest.insert(at, difference);
            out.largest.truncate(limit);
        }
    }
    if out.non_finite_mismatches > 0 {
        out.rms = f64::INFINITY;
        out.relative_l2 = f64::INFINITY;
        out.cosine = f64::NAN;
        return out;
    }
    out.rms = (sum / out.elems.max(1) as f64).sqrt();
    out.relative_l2 = ratio(sum.sqrt(), bb.sqrt());
    out.cosine = if aa == 0.0 && bb == 0.0 { 1.0 } else { ratio(ab, aa.sqrt() * bb.sqrt()) };
    out
}

/// a / b, where 0 / 0 is 0.
#[must_use]
pub fn ratio(a: f64, b: f64) -> f64 {
    if a == 0.0 && b == 0.0 { 0.0 } else { a / b }
}

#[cfg(test)]
mod tests {
    use super::compare;

    #[test]
    fn numbers_by_hand() {
        let c = compare(&[1.0, 2.0, 3.0], &[1.0, 4.0, 3.5], 2);
        assert_eq!(c.largest.iter().map(|d| d.index).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(c.max.map(|m| (m.index, m.abs)), Some((1, 2.0)));
        assert!((c.rms - (4.25f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!((c.relative_l2 - (4.25f64 / 29.25).sqrt()).abs() < 1e-12);
        let cosine = (1.0 + 8.0 + 10.5) / (14f64.sqrt() * 29.25f64.sqrt());
        assert!((c.cosine - cosine).abs() < 1e-12);
    }

    #[test]
    fn a_nan_on_one_side_is_beyond_any_tolerance() {
        let c = compare(&[1.0, f32::NAN], &[1.0, 2.0], 0);
        assert!(!c.within(f64::MAX) && c.nan_a == 1 && c.nan_b == 0);
        assert!(compare(&[1.0, f32::NAN], &[1.0, f32::NAN], 0).within(0.0));
        assert!(!compare(&[f32::INFINITY], &[f32::NEG_INFINITY], 0).within(f64::MAX));
        assert!(compare(&[f32::INFINITY], &[f32::INFINITY], 0).within(0.0));
    }

    #[test]
    fn zeros() {
        assert!(compare(&[0.0], &[0.0], 0).within(0.0));
        assert!(!compare(&[1.0], &[0.0], 0).within(1.0));
    }
}
