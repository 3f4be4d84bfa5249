//! Formats within a size: the cheapest sum of costs.

use std::collections::HashMap;

use moe_run_graph::quant::Format;

use super::{Cost, TensorCosts};

/// A size that no choice fits.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("{wanted_bytes} bytes for matrices: the smallest formats take {least_bytes}; ask for more bits")]
pub struct ChooseError {
    /// What there is.
    pub wanted_bytes: usize,
    /// What the smallest take.
    pub least_bytes: usize,
}

/// The costs that lie on the lower hull of a tensor's points (bytes, divergence): along it each byte buys less than the one
/// before it.
fn hull(costs: &[Cost]) -> Vec<Cost> {
    let slope = |a: &Cost, b: &Cost| (a.kl - b.kl) / (b.bytes - a.bytes) as f64;
    let mut hull: Vec<Cost> = Vec::new();
    for cost in costs {
        // Among equal sizes the better; a larger one that is no better is nothing.
        if hull.last().is_some_and(|last| cost.kl >= last.kl) {
            continue;
        }
        while let Some(last) = hull.last() {
            let same = last.bytes == cost.bytes;
            let below = hull.len() > 1 && slope(&hull[hull.len() - 2], last) <= slope(last, cost).max(0.0);
            if !same && !below {
                break;
            }
            hull.pop();
        }
        hull.push(*cost);
    }
    hull
}

/// A format for each tensor, `bytes` at most together, with the least sum of costs that this finds: from the smallest formats
/// on, always the step that buys most for a byte (which is the best there is at each size so reached), then steps of any sort
/// into what is left.
///
/// # Errors
/// [`ChooseError`].
pub fn choose(tensors: &[TensorCosts], bytes: usize) -> Result<HashMap<String, Format>, ChooseError> {
    let hulls: Vec<Vec<Cost>> = tensors.iter().map(|tensor| hull(&tensor.costs)).collect();
    let mut chosen: Vec<usize> = vec![0; tensors.len()];
    let least_bytes = hulls.iter().filter_map(|hull| hull.first()).map(|cost| cost.bytes).sum();
    let mut left = bytes.checked_sub(least_bytes).ok_or(ChooseError { wanted_bytes: bytes, least_bytes })?;
    loop {
        // The step that buys most for a byte of those that fit.
        let mut best: Option<(f64, usize, usize)> = None;
        for (t, hull) in hulls.iter().enumerate() {
            let now = &hull[chosen[t]];
            for (to, cost) in hull.iter().enumerate().skip(chosen[t] + 1) {
                let more = cost.bytes - now.bytes;
                let worth = (now.kl - cost.kl) / more as f64;
                if more <= left && best.is_none_or(|(most, ..)| worth > most) {
                    best = Some((worth, t, to));
                }
            }
        }
        let Some((_, t, to)) = best else { break };
        left -= hulls[t][to].bytes - hulls[t][chosen[t]].bytes;
        chosen[t] = to;
    }
    let formats = tensors.iter().zip(hulls.iter().zip(chosen));
    Ok(formats.filter_map(|(tensor, (hull, i))| Some((tensor.name.clone(), hull.get(i)?.format))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, costs: &[(Format, usize, f64)]) -> TensorCosts {
        let costs = costs.iter().map(|&(format, bytes, kl)| Cost { format, bytes, kl }).collect();
        TensorCosts { name: name.into(), costs }
    }

    fn two() -> [TensorCosts; 2] {
        let (q2, q4, q6, q8) = (Format::Q2K, Format::Q4K, Format::Q6K, Format::Q8_0);
        [
            tensor("a", &[(q2, 20, 0.5), (q4, 40, 0.1), (q6, 60, 0.05), (q8, 85, 0.0)]),
            tensor("b", &[(q2, 20, 5.0), (q4, 40, 4.9), (q6, 60, 0.3), (q8, 85, 0.0)]),
        ]
    }

    #[test]
    fn bytes_go_where_they_buy_most() {
        let at = |bytes| {
            let chosen = choose(&two(), bytes).unwrap();
            [chosen["a"], chosen["b"]]
        };
        assert_eq!(at(40), [Format::Q2K, Format::Q2K]);
        assert_eq!(at(80), [Format::Q2K, Format::Q6K], "the step over Q4_K is worth more than any into it");
        assert_eq!(at(100), [Format::Q4K, Format::Q6K]);
        assert_eq!(at(170), [Format::Q8_0, Format::Q8_0]);
        let error = choose(&two(), 39).unwrap_err();
        assert_eq!((error.wanted_bytes, error.least_bytes), (39, 40));
    }

    #[test]
    fn no_choice_that_is_smaller_by_a_step_is_better() {
        let tensors = two();
        const LARGEST_STEP: usize = 40;
        for bytes in 40..=170 {
            let chosen = choose(&tensors, bytes).unwrap();
            let of = |t: &TensorCosts| *t.costs.iter().find(|c| c.format == chosen[&t.name]).unwrap();
            let (a, b) = (of(&tensors[0]), of(&tensors[1]));
            assert!(a.bytes + b.bytes <= bytes);
            for x in &tensors[0].costs {
                for y in tensors[1].costs.iter().filter(|y| x.bytes + y.bytes + LARGEST_STEP <= bytes) {
                    assert!(a.kl + b.kl <= x.kl + y.kl, "{bytes}: {x:?} {y:?}");
                }
            }
        }
    }
}
