//! Routing flips: positions where two runs chose different experts, and whether that is a near-tie.
//!
//! A flip is a near-tie where, by the second run's router logits, the experts that only one run chose are closer to each
//! other than the two runs' logits are to each other (twice, since both ends move). It is then rounding, not a bug.

use super::number;
use serde::Serialize;

/// One position whose chosen experts differ as sets.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Flip {
    /// Row of the ids.
    pub row: usize,
    /// Experts that only the first run chose.
    pub only_a: Vec<u32>,
    /// Experts that only the second run chose.
    pub only_b: Vec<u32>,
    /// The widest gap between the two lists in the second run's logits; NaN where those are not known.
    #[serde(serialize_with = "number::f64")]
    pub margin: f64,
    /// The largest difference of the two runs' logits at this position; NaN where those are not known.
    #[serde(serialize_with = "number::f64")]
    pub logit_difference: f64,
    /// The margin is below what the difference explains.
    pub near_tie: bool,
}

/// Router logits of both runs, `[T, E]`.
#[derive(Debug, Clone, Copy)]
pub struct Logits<'a> {
    /// First run.
    pub a: &'a [f32],
    /// Second run.
    pub b: &'a [f32],
    /// E.
    pub num_experts: usize,
}

/// The flips between two lists of ids `[T, K]`. `noise` is a relative difference of logits that is always granted.
#[must_use]
pub fn flips(a: &[f32], b: &[f32], per_tok: usize, logits: Option<Logits<'_>>, noise: f64) -> Vec<Flip> {
    let mut found = Vec::new();
    for (row, (x, y)) in a.chunks_exact(per_tok.max(1)).zip(b.chunks_exact(per_tok.max(1))).enumerate() {
        let only = |mine: &[f32], other: &[f32]| -> Vec<u32> {
            mine.iter().filter(|id| !other.contains(id)).map(|id| *id as u32).collect()
        };
        let (only_a, only_b) = (only(x, y), only(y, x));
        if only_a.is_empty() && only_b.is_empty() {
            continue;
        }
        let rows = logits.and_then(|l| {
            let range = row * l.num_experts..(row + 1) * l.num_experts;
            Some((l.a.get(range.clone())?, l.b.get(range)?))
        });
        let (mut margin, mut logit_difference) = (f64::NAN, f64::NAN);
        if let Some((la, lb)) = rows {
            let at = |id: &u32| lb.get(*id as usize).map_or(f64::NAN, |l| f64::from(*l));
            let best = only_b.iter().map(at).fold(f64::NEG_INFINITY, f64::max);
            let least = only_a.iter().map(at).fold(f64::INFINITY, f64::min);
            margin = best - least;
            let largest = lb.iter().map(|l| f64::from(l.abs())).fold(0.0, f64::max);
            logit_difference = la.iter().zip(lb).map(|(p, q)| f64::from((p - q).abs())).fold(0.0, f64::max);
            logit_difference = logit_difference.max(noise * largest);
        }
        let near_tie = margin <= 2.0 * logit_difference;
        found.push(Flip { row, only_a, only_b, margin, logit_difference, near_tie });
    }
    found
}

/// Sorts the slots of `values` `[T, K, width]`, that belong to the ids `from`, into the order of the ids `to`. A row
/// whose ids differ as a set stays as it is.
pub fn align(values: &mut [f32], per_tok: usize, from: &[f32], to: &[f32]) {
    let rows = from.len() / per_tok.max(1);
    if rows == 0 || from == to {
        return;
    }
    let row_elems = values.len() / rows;
    let width = row_elems / per_tok;
    for (row, elems) in values.chunks_exact_mut(row_elems.max(1)).enumerate() {
        let ids = row * per_tok..(row + 1) * per_tok;
        let (from, to) = (&from[ids.clone()], &to[ids]);
        let order: Option<Vec<usize>> = to.iter().map(|id| from.iter().position(|f| f == id)).collect();
        let Some(order) = order else { continue };
        let old = elems.to_vec();
        for (slot, source) in order.into_iter().enumerate() {
            elems[slot * width..(slot + 1) * width]
                .copy_from_slice(&old[source * width..(source + 1) * width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Logits, align, flips};

    #[test]
    fn a_near_tie_is_told_from_a_bug() {
        let b = [1.0, 0.9999, 0.2, -1.0];
        let a = [1.0, 0.9998, 0.99985, -1.0];
        let logits = Some(Logits { a: &a, b: &b, num_experts: 4 });
        // The runs differ by 0.8 there, so a gap of 0.8 is explained.
        assert!(flips(&[0.0, 2.0], &[0.0, 1.0], 2, logits, 0.0)[0].near_tie);
        let close = [1.0, 0.9999, 0.2, -0.9999];
        let logits = Some(Logits { a: &close, b: &b, num_experts: 4 });
        let bug = flips(&[0.0, 2.0], &[0.0, 1.0], 2, logits, 0.0);
        assert!(!bug[0].near_tie && bug[0].only_a == [2] && bug[0].only_b == [1]);
        assert!(flips(&[1.0, 0.0], &[0.0, 1.0], 2, None, 0.0).is_empty(), "order alone is no flip");
        assert!(!flips(&[0.0, 2.0], &[0.0, 1.0], 2, None, 0.0)[0].near_tie, "unknown logits excuse nothing");
    }

    #[test]
    fn slots_follow_their_experts() {
        let mut values = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5];
        align(&mut values, 2, &[7.0, 3.0, 1.0, 2.0], &[3.0, 7.0, 1.0, 9.0]);
        assert_eq!(values, [2.0, 2.5, 1.0, 1.5, 3.0, 3.5, 4.0, 4.5]);
    }
}
