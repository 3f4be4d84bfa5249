//! How far one run's distributions are from another's, over the same tokens.

use super::statistics::{Estimate, Mean, log_softmax};
use serde::Serialize;

/// The comparison of two runs: base is the saved one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Divergence {
    /// KL(base ‖ this) = Σ p_base · (ln p_base − ln p_this), in nats, averaged over the scored tokens.
    pub kl: Estimate,
    /// The median of it.
    pub kl_median: f64,
    /// 99 of 100 tokens are at or below.
    pub kl_p99: f64,
    /// The largest.
    pub kl_max: f64,
    /// Share of tokens for which both runs have the same most likely token.
    pub same_top: f64,
    /// ln perplexity − ln perplexity of the base, with the error of the paired differences.
    pub ln_perplexity_ratio: Estimate,
    /// The base's perplexity.
    pub base_perplexity: f64,
}

/// A comparison under way.
#[derive(Debug, Clone, Default)]
pub struct DivergenceSum {
    kl: Mean,
    each_kl: Vec<f64>,
    same_top: usize,
    ln_ratio: Mean,
    base_nll: Mean,
    base_log_probs: Vec<f64>,
}

impl DivergenceSum {
    /// Adds a position: the base's logits, this run's ln p over the vocabulary, and the token that followed.
    pub fn push(&mut self, base_logits: &[f32], log_probs: &[f64], target: usize) {
        log_softmax(base_logits, &mut self.base_log_probs);
        let base = &self.base_log_probs;
        let kl: f64 = base.iter().zip(log_probs).map(|(b, t)| b.exp() * (b - t)).sum();
        // Exactly 0 or more in theory; rounding may leave a few 1e-17 below.
        let kl = kl.max(0.0);
        self.kl.push(kl);
        self.each_kl.push(kl);
        self.same_top += usize::from(top(base) == top(log_probs));
        self.ln_ratio.push(base[target] - log_probs[target]);
        self.base_nll.push(-base[target]);
    }

    /// KL so far.
    #[must_use]
    pub fn kl(&self) -> Estimate {
        self.kl.estimate()
    }

    /// The result. Without any position, every number is 0.
    #[must_use]
    pub fn finish(mut self) -> Divergence {
        self.each_kl.sort_by(f64::total_cmp);
        Divergence {
            kl: self.kl.estimate(),
            kl_median: quantile(&self.each_kl, 0.5),
            kl_p99: quantile(&self.each_kl, 0.99),
            kl_max: self.each_kl.last().copied().unwrap_or(0.0),
            same_top: self.same_top as f64 / self.each_kl.len().max(1) as f64,
            ln_perplexity_ratio: self.ln_ratio.estimate(),
            base_perplexity: self.base_nll.estimate().mean.exp(),
        }
    }
}

/// The first of the largest.
fn top(log_probs: &[f64]) -> usize {
    let mut best = 0;
    for (i, x) in log_probs.iter().enumerate() {
        if *x > log_probs[best] {
            best = i;
        }
    }
    best
}

/// The smallest value that at least a share `q` of the sorted values does not exceed; 0 of none.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(base: &[f32], this: &[f32], target: usize) -> Divergence {
        let mut log_probs = Vec::new();
        log_softmax(this, &mut log_probs);
        let mut sum = DivergenceSum::default();
        sum.push(base, &log_probs, target);
        sum.finish()
    }

    #[test]
    fn a_run_does_not_diverge_from_itself() {
        let d = pushed(&[0.5, -1.0, 3.0], &[0.5, -1.0, 3.0], 0);
        assert_eq!((d.kl.mean, d.same_top, d.ln_perplexity_ratio.mean), (0.0, 1.0, 0.0));
    }

    #[test]
    fn divergence_of_two_coins() {
        // base (3/4, 1/4), this (1/2, 1/2): KL = 3/4 ln 3/2 + 1/4 ln 1/2.
        let d = pushed(&[3f32.ln(), 0.0], &[0.0, 0.0], 0);
        let wanted = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((d.kl.mean - wanted).abs() < 1e-7, "{}", d.kl.mean);
        assert!((d.ln_perplexity_ratio.mean - 1.5f64.ln()).abs() < 1e-7);
        assert!((d.base_perplexity - 4.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn a_different_top_token_is_counted() {
        assert_eq!(pushed(&[1.0, 0.0], &[0.0, 1.0], 0).same_top, 0.0);
    }

    #[test]
    fn quantiles_are_values_that_occur() {
        let sorted: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!((quantile(&sorted, 0.5), quantile(&sorted, 0.99)), (100.0, 198.0));
    }
}
