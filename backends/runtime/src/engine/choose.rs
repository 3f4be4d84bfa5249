//! A request's way from a row of logits to its next token.
//!
//! In order: log probabilities, from the untouched logits; `logit_bias`, added; presence and frequency penalties for tokens that
//! were generated, as OpenAI defines them; what a [`Constraint`] does not allow; then [`Sampler`]'s own order, from the repetition penalty on.

use crate::generate::{Constraint, GenerateError};
use crate::sampler::{Sampler, SamplerError, SamplerOptions};
use crate::sequences::{Experts, Sequences};
use moe_run_graph::ids::TokenId;
use std::collections::HashMap;

/// How a request's tokens are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Choose {
    /// From temperature to seed.
    pub sampler: SamplerOptions,
    /// Taken from the logit of each token that was generated.
    pub presence_penalty: f32,
    /// Taken from the logit of each token as many times as it was generated.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// The log probability of each token, and of so many of the best ones beside it.
    pub logprobs: Option<usize>,
}

impl Choose {
    /// By a sampler's options alone.
    #[must_use]
    pub fn by(sampler: SamplerOptions) -> Choose {
        Choose {
            sampler,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            logprobs: None,
        }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`SamplerError::Option`] for one outside of its range.
    pub fn check(&self) -> Result<(), SamplerError> {
        let Choose { sampler, presence_penalty, frequency_penalty, logit_bias, logprobs: _ } = self;
        sampler.check()?;
        let penalties = [("presence_penalty", *presence_penalty), ("frequency_penalty", *frequency_penalty)];
        let biases = logit_bias.iter().map(|(_, bias)| ("logit_bias", *bias));
        match penalties.into_iter().chain(biases).find(|(_, value)| !value.is_finite()) {
            Some((name, found)) => Err(SamplerError::Option { name, found, wanted: "a finite number" }),
            None => Ok(()),
        }
    }
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The token.
    pub token: TokenId,
    /// Its log probability among all tokens, where it was asked for.
    pub logprob: Option<f32>,
    /// The best tokens with theirs, best first, where they were asked for.
    pub top: Vec<(TokenId, f32)>,
    /// The experts of the pass that chose it, by layer, where they were asked for.
    pub experts: Experts,
}

/// Chooses the tokens of one request.
pub(super) struct Chooser {
    choose: Choose,
    constraint: Option<Box<dyn Constraint>>,
    sampler: Sampler,
    /// How often each token was generated.
    counts: HashMap<TokenId, u32>,
}

impl Chooser {
    /// # Errors
    /// As [`Choose::check`].
    pub(super) fn new(
        choose: Choose,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Result<Chooser, SamplerError> {
        choose.check()?;
        let sampler = Sampler::new(choose.sampler)?;
        Ok(Chooser { choose, constraint, sampler, counts: HashMap::new() })
    }

    fn counts_tokens(&self) -> bool {
        self.choose.presence_penalty != 0.0 || self.choose.frequency_penalty != 0.0
    }

    /// Whether the text is what it is held to, and nothing can follow.
    pub(super) fn is_complete(&self) -> bool {
        self.constraint.as_ref().is_some_and(|constraint| constraint.is_complete())
    }

    /// What the text is held to, which can be asked before the next token's logits are there.
    pub(super) fn constraint(&mut self) -> Option<&mut dyn Constraint> {
        self.constraint.as_deref_mut().map(|c| c as &mut dyn Constraint)
    }

    /// Whether the best of the untouched logits says everything.
    fn is_plain_argmax(&self) -> bool {
        self.sampler.is_plain_argmax()
            && self.constraint.is_none()
            && self.choose.logprobs.is_none()
            && self.choose.logit_bias.is_empty()
            && !self.counts_tokens()
    }

    /// The token behind `history` (prompt included) from a row of the last step's logits. `logits` is room that is kept.
    ///
    /// # Errors
    /// The logits cannot be had, or are no numbers.
    pub(super) fn next(
        &mut self,
        sequences: &mut Sequences,
        row: usize,
        history: &[TokenId],
        logits: &mut Vec<f32>,
    ) -> Result<Chosen, GenerateError> {
        if self.is_plain_argmax() {
            return Ok(Chosen {
                token: sequences.argmax(row)?,
                logprob: None,
                top: Vec::new(),
                experts: Experts::new(),
            });
        }
        sequences.logits(row, logits)?;
        logits.truncate(sequences.executable().choosable(logits.len()));
        let untouched = self.choose.logprobs.map(|top| LogProbs::of(logits, top));
        for (token, bias) in &self.choose.logit_bias {
            if let Some(logit) = logits.get_mut(token.index()) {
                *logit += bias;
            }
        }
        for (token, count) in &self.counts {
            if let Some(logit) = logits.get_mut(token.index()) {
                *logit -= self.choose.presence_penalty + self.choose.frequency_penalty * *count as f32;
            }
        }
        // The logit of the chosen token as it was, for its probability.
        let own = |sequences: &mut Sequences, token: TokenId, logits: &mut Vec<f32>| {
            sequences.logits(row, logits).map(|()| logits.get(token.index()).copied())
        };
        let token = match &mut self.constraint {
            None => self.sampler.sample(logits, history)?,
            Some(constraint) => {
                let allowed = constraint.allowed().map_err(GenerateError::Constraint)?;
                let token = match self.sampler.sample_allowed(logits, allowed, history) {
                    // Nothing fits: the rule's failure, not the model's.
                    Err(error @ SamplerError::NoCandidate) => {
                        return Err(GenerateError::Constraint(error.into()));
                    }
                    chosen => chosen?,
                };
                constraint.accept(token).map_err(GenerateError::Constraint)?;
                token
            }
        };
        if self.counts_tokens() {
            *self.counts.entry(token).or_insert(0) += 1;
        }
        let Some(LogProbs { log_sum, top }) = untouched else {
            return Ok(Chosen { token, logprob: None, top: Vec::new(), experts: Experts::new() });
        };
        let is_touched = self.counts_tokens() || !self.choose.logit_bias.is_empty();
        let logit = match is_touched {
            true => own(sequences, token, logits)?,
            false => logits.get(token.index()).copied(),
        };
        let logprob = logit.map(|logit| (f64::from(logit) - log_sum) as f32);
        Ok(Chosen { token, logprob, top, experts: Experts::new() })
    }
}

/// Logarithms of probabilities.
struct LogProbs {
    /// The logarithm of the sum of all exponentials.
    log_sum: f64,
    top: Vec<(TokenId, f32)>,
}

impl LogProbs {
    fn of(logits: &[f32], top: usize) -> LogProbs {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|l| (f64::from(*l) - f64::from(max)).exp()).sum();
        let log_sum = f64::from(max) + sum.ln();
        let mut best = Vec::new();
        // What is no number is the sampler's to say.
        if top > 0 && crate::choice::best_candidates(logits, top, &mut best).is_err() {
            best.clear();
        }
        let top = best.into_iter().map(|(t, logit)| (t, (f64::from(logit) - log_sum) as f32)).collect();
        LogProbs { log_sum, top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_a_softmax() {
        let logits = [0.5, -1.0, 2.0, f32::NEG_INFINITY];
        let LogProbs { log_sum, top } = LogProbs::of(&logits, 3);
        let total: f64 = [0.5f64, -1.0, 2.0].iter().map(|l| l.exp()).sum();
        assert!((log_sum - total.ln()).abs() < 1e-12);
        assert_eq!(top.iter().map(|(t, _)| t.0).collect::<Vec<_>>(), [2, 0, 1]);
        let sum: f64 = top.iter().map(|(_, p)| f64::from(*p).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    }

    #[test]
    fn values_that_are_no_numbers_are_refused_by_name() {
        let plain = Choose::by(SamplerOptions::GREEDY);
        for (choose, name) in [
            (Choose { presence_penalty: f32::NAN, ..plain.clone() }, "presence_penalty"),
            (Choose { frequency_penalty: f32::INFINITY, ..plain.clone() }, "frequency_penalty"),
            (Choose { logit_bias: vec![(TokenId(1), f32::NAN)], ..plain.clone() }, "logit_bias"),
        ] {
            assert!(choose.check().unwrap_err().to_string().starts_with(name));
        }
        plain.check().unwrap();
    }
}
