//! Stage 7, the part that a device may do: logits → the best token, or the candidates that a sampler draws from.
//!
//! Input: one row of logits. Output: what [`Executable::argmax`](crate::executable::Executable::argmax) and
//! [`crate::Executable::candidates`](crate::executable::Executable::candidates) are defined by, and what a backend whose logits lie
//! on the host answers with. Deliberately absent: anything random, which is the sampler's.

use crate::error::BackendError;
use moe_run_graph::ids::TokenId;

/// The most candidates that a device chooses for the host's sampler: a top-k up to this reads nothing else back.
pub const MAX_CANDIDATES: usize = 128;

/// The error for [`crate::Executable::taken`] behind a step whose tokens came from the host.
#[must_use]
pub fn not_taken() -> BackendError {
    BackendError::Input("the last step took no token on the device".into())
}

/// The error for a NaN among the logits.
#[must_use]
pub fn nan_logit(id: usize) -> BackendError {
    BackendError::Input(format!("logit {id} is NaN; `moe-run trace` names the first operation that made one"))
}

/// The best `count` of some logits, as [`crate::Executable::candidates`] defines them.
///
/// # Errors
/// [`BackendError::Input`] for a NaN, naming its id.
pub fn best_candidates(
    logits: &[f32],
    count: usize,
    out: &mut Vec<(TokenId, f32)>,
) -> Result<(), BackendError> {
    out.clear();
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return Err(nan_logit(id));
        }
        // Ids ascend, so a logit that equals the last kept one ranks behind it.
        let is_beaten = out.len() == count && out.last().is_none_or(|(_, last)| logit <= *last);
        if is_beaten || logit == f32::NEG_INFINITY {
            continue;
        }
        if out.len() == count {
            out.pop();
        }
        let place = out.partition_point(|(_, kept)| *kept >= logit);
        out.insert(place, (TokenId(id as u32), logit));
    }
    Ok(())
}

/// The best of some logits: the lowest id wins a tie.
///
/// # Errors
/// [`BackendError::Input`] for a NaN, naming its id, and for no logits at all.
pub fn argmax(logits: &[f32]) -> Result<TokenId, BackendError> {
    let mut best: Option<(usize, f32)> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return Err(nan_logit(id));
        }
        if best.is_none_or(|(_, b)| logit > b) {
            best = Some((id, logit));
        }
    }
    best.map(|(id, _)| TokenId(id as u32)).ok_or_else(|| BackendError::Input("no logits".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_the_sorted_logits() {
        // Few values, so that ties are common.
        let logits: Vec<f32> = (0..300u32).map(|i| ((i * 7919 + 13) % 41) as f32 - 20.0).collect();
        let mut all: Vec<(TokenId, f32)> =
            logits.iter().enumerate().map(|(i, l)| (TokenId(i as u32), *l)).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut found = Vec::new();
        for count in [1, 2, 20, MAX_CANDIDATES] {
            best_candidates(&logits, count, &mut found).unwrap();
            assert_eq!(found, all[..count]);
        }
    }

    #[test]
    fn fewer_than_asked_and_what_is_impossible() {
        let mut found = Vec::new();
        best_candidates(&[f32::NEG_INFINITY, 1.0, f32::INFINITY, 1.0], 20, &mut found).unwrap();
        let wanted = [(TokenId(2), f32::INFINITY), (TokenId(1), 1.0), (TokenId(3), 1.0)];
        assert_eq!(found, wanted);
        let error = best_candidates(&[1.0, f32::NAN, f32::NAN], 1, &mut found).unwrap_err();
        assert!(error.to_string().contains("logit 1 is NaN"), "{error}");
    }
}
