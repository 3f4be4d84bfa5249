//! Stage 7: logits → token.
//!
//! Input: one row of logits, the tokens so far, [`SamplerOptions`]. Output: a token, the same for the same seed.
//! In order, as Hugging Face's generation does it, since the settings that model makers advise were chosen there:
//!
//! 1. repetition penalty r: each token that occurred has its logit divided by r if positive, multiplied by r if not
//! 2. temperature 0: the best token, the lowest id of equals. Otherwise logits are divided by the temperature
//! 3. top-k: the k best
//! 4. top-p: of these, by descending probability, the fewest whose probabilities reach p together
//! 5. min-p: those whose probability is at least min_p times the best one's
//! 6. a draw from what is left
//!
//! Deliberately absent: the operating system's randomness (a seed is given), and any state besides the generator's.

use std::cmp::Ordering;

use crate::choice::MAX_CANDIDATES;
use moe_run_graph::ids::TokenId;
use thiserror::Error;
use xoshiro::Xoshiro256PlusPlus;

mod xoshiro;

/// How a token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct SamplerOptions {
    /// Divides the logits; 0 takes the best token always.
    pub temperature: f32,
    /// How many of the best tokens are kept; 0 keeps all.
    pub top_k: usize,
    /// The share of probability that is kept; 1 keeps all.
    pub top_p: f32,
    /// The least probability, as a share of the best token's; 0 keeps all.
    pub min_p: f32,
    /// How much less likely a token becomes once it occurred; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Where the random numbers begin.
    pub seed: u64,
}

impl SamplerOptions {
    /// The best token always.
    pub const GREEDY: SamplerOptions = SamplerOptions {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        seed: 0,
    };

    /// Checks every value.
    ///
    /// # Errors
    /// [`SamplerError::Option`] for one outside of its range.
    pub fn check(&self) -> Result<(), SamplerError> {
        let check = |name, value: f32, valid: bool, wanted| {
            if valid { Ok(()) } else { Err(SamplerError::Option { name, found: value, wanted }) }
        };
        let SamplerOptions { temperature, top_k: _, top_p, min_p, repetition_penalty, seed: _ } = *self;
        check("temperature", temperature, temperature.is_finite() && temperature >= 0.0, "0 or more")?;
        check("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "more than 0, and 1 at most")?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "0 to 1")?;
        let penalty_is_valid = repetition_penalty.is_finite() && repetition_penalty > 0.0;
        check("repetition_penalty", repetition_penalty, penalty_is_valid, "more than 0")
    }
}

/// Why no token could be chosen.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// An option outside of its range.
    #[error("{name}: found {found}, wanted {wanted}")]
    Option {
        /// The option.
        name: &'static str,
        /// Its value.
        found: f32,
        /// The range.
        wanted: &'static str,
    },
    /// A logit that is no number to compare.
    #[error(
        "logit of token {token}: found {found}, wanted a finite number; `moe-run trace` names the first operation that \
         made one, `moe-run inspect --check` looks for it in the file"
    )]
    NotFinite {
        /// The token.
        token: TokenId,
        /// Its logit: NaN or infinity.
        found: f32,
    },
    /// No logits, or none above minus infinity.
    #[error("found no logit above minus infinity, wanted one at least")]
    NoCandidate,
    /// A token of the history that has no logit.
    #[error("token {token} of the text so far is outside of the {vocab_size} logits")]
    UnknownToken {
        /// The token.
        token: TokenId,
        /// How many logits there are.
        vocab_size: usize,
    },
}

/// Up to this top-k the best tokens are kept in order in one pass over the logits, which then costs one comparison for nearly
/// all of them; above it they are selected and sorted.
const SORTED_INSERTION_MAX: usize = 128;

/// The fewest candidates that a sampler with a repetition penalty asks for.
const SPARE_CANDIDATES: usize = 16;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The token.
    pub token: TokenId,
    /// Its logit after penalty and temperature.
    logit: f32,
    /// Its probability among the candidates.
    pub probability: f64,
}

/// Chooses tokens. Buffers are kept: after the first token nothing is allocated.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplerOptions,
    random: Xoshiro256PlusPlus,
    penalized: Vec<f32>,
    candidates: Vec<Candidate>,
    /// Tokens of the text so far, a bit each.
    occurred: Vec<u64>,
}

impl Sampler {
    /// A sampler at the beginning of its random numbers.
    ///
    /// # Errors
    /// [`SamplerError::Option`] for an option outside of its range.
    pub fn new(options: SamplerOptions) -> Result<Sampler, SamplerError> {
        options.check()?;
        let random = Xoshiro256PlusPlus::from_seed(options.seed);
        Ok(Sampler { options, random, penalized: Vec::new(), candidates: Vec::new(), occurred: Vec::new() })
    }

    /// The options.
    #[must_use]
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Whether the best of the untouched logits is always taken, which an executable can do on its device.
    #[must_use]
    pub fn is_plain_argmax(&self) -> bool {
        self.options.temperature == 0.0 && self.options.repetition_penalty == 1.0
    }

    /// How many of the best tokens are drawn from at most: 0 for no limit.
    fn kept(&self) -> usize {
        if self.options.temperature == 0.0 { 1 } else { self.options.top_k }
    }

    /// How many of the best logits say all that this sampler asks, so that an executable may choose them on its device and
    /// nothing else is read back, if they are no more than [`MAX_CANDIDATES`]: top-k. A repetition penalty above 1 only
    /// lowers logits, so that what moves up into the top-k stands shortly behind it: as many again are asked for, 16 at
    /// least, and [`Sampler::sample_candidates`] says where they do not do. `None`: it needs every logit.
    #[must_use]
    pub fn candidates_wanted(&self) -> Option<usize> {
        let kept = self.kept();
        let count = match self.options.repetition_penalty {
            1.0 => kept,
            above if above > 1.0 => kept.saturating_mul(2).max(SPARE_CANDIDATES),
            _ => return None,
        };
        (kept > 0 && count <= MAX_CANDIDATES).then_some(count)
    }

    /// The next token from [`Sampler::candidates_wanted`] of the best logits, best first, the lower id first among equals:
    /// the same token that [`Sampler::sample`] draws from all of them. `None`, and no random number is used, where a token
    /// that is not among them may be needed. `history` as in [`Sampler::sample`].
    ///
    /// # Errors
    /// As for [`Sampler::sample`].
    pub fn sample_candidates(
        &mut self,
        best: &[(TokenId, f32)],
        history: &[TokenId],
    ) -> Result<Option<TokenId>, SamplerError> {
        let (Some(&(token, best_logit)), Some(&(_, last_logit))) = (best.first(), best.last()) else {
            return Err(SamplerError::NoCandidate);
        };
        if best_logit == f32::INFINITY {
            return Err(SamplerError::NotFinite { token, found: best_logit });
        }
        self.candidates.clear();
        let candidate = |&(token, logit): &(TokenId, f32)| Candidate { token, logit, probability: 0.0 };
        self.candidates.extend(best.iter().map(candidate));
        let kept = self.kept();
        if self.options.repetition_penalty != 1.0 {
            self.penalize_candidates(history);
            self.candidates.retain(|c| c.logit > f32::NEG_INFINITY);
            self.candidates.sort_unstable_by(by_rank);
            // Every other token's logit is the last one's at most, before and after the penalty.
            let is_sure = |c: &Candidate| c.logit > last_logit;
            let others = Some(best.len()) == self.candidates_wanted();
            if others && !self.candidates.get(kept.saturating_sub(1)).is_some_and(is_sure) {
                return Ok(None);
            }
        }
        self.candidates.truncate(kept);
        let Some(&Candidate { token, logit, .. }) = self.candidates.first() else {
            return Err(SamplerError::NoCandidate);
        };
        if self.options.temperature == 0.0 {
            return Ok(Some(token));
        }
        self.weigh(logit);
        self.draw().map(Some)
    }

    /// Lowers the candidates that occurred.
    fn penalize_candidates(&mut self, history: &[TokenId]) {
        let words = self.candidates.iter().map(|c| c.token.index() / 64 + 1).max().unwrap_or(0);
        self.occurred.clear();
        self.occurred.resize(words, 0);
        for token in history {
            if let Some(word) = self.occurred.get_mut(token.index() / 64) {
                *word |= 1 << (token.index() % 64);
            }
        }
        for candidate in &mut self.candidates {
            let id = candidate.token.index();
            if self.occurred[id / 64] >> (id % 64) & 1 == 1 {
                candidate.logit = penalized(candidate.logit, self.options.repetition_penalty);
            }
        }
    }

    /// The next token. `history` are the tokens so far, prompt included.
    ///
    /// # Errors
    /// [`SamplerError`] for a logit that is NaN or positive infinity, for none to choose from, and for a token of the
    /// history without a logit.
    pub fn sample(&mut self, logits: &[f32], history: &[TokenId]) -> Result<TokenId, SamplerError> {
        if self.options.temperature == 0.0 {
            let logits = self.penalize(logits, history)?;
            return best(logits).map(|(token, _)| token);
        }
        self.distribution(logits, history)?;
        self.draw()
    }

    /// The next token among those whose bit is set in `allowed` (32 a word, the lowest first): the others' logits are minus
    /// infinity, before anything else is done.
    ///
    /// # Errors
    /// As for [`Sampler::sample`]; [`SamplerError::NoCandidate`] where none is allowed.
    pub fn sample_allowed(
        &mut self,
        logits: &mut [f32],
        allowed: &[u32],
        history: &[TokenId],
    ) -> Result<TokenId, SamplerError> {
        for (id, logit) in logits.iter_mut().enumerate() {
            let is_allowed = allowed.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1);
            // What is no number is an error wherever it is.
            if !is_allowed && !logit.is_nan() {
                *logit = f32::NEG_INFINITY;
            }
        }
        self.sample(logits, history)
    }

    /// One of the candidates, by their probabilities.
    fn draw(&mut self) -> Result<TokenId, SamplerError> {
        let draw = self.random.next_unit();
        let mut sum = 0.0;
        for candidate in &self.candidates {
            sum += candidate.probability;
            if draw < sum {
                return Ok(candidate.token);
            }
        }
        // The probabilities' sum may round to a little below 1.
        self.candidates.last().map(|c| c.token).ok_or(SamplerError::NoCandidate)
    }

    /// What a draw would choose from: tokens with their probabilities, most probable first, equals by id. At temperature 0
    /// it is the best token alone.
    ///
    /// # Errors
    /// As for [`Sampler::sample`].
    pub fn distribution(
        &mut self,
        logits: &[f32],
        history: &[TokenId],
    ) -> Result<&[Candidate], SamplerError> {
        let SamplerOptions { temperature, top_k, .. } = self.options;
        self.penalize(logits, history)?;
        let (best_token, best_logit) = best(&self.penalized)?;
        self.candidates.clear();
        if temperature == 0.0 {
            self.candidates.push(Candidate { token: best_token, logit: best_logit, probability: 1.0 });
            return Ok(&self.candidates);
        }
        let possible = (0u32..)
            .zip(&self.penalized)
            .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
            .map(|(id, &logit)| Candidate { token: TokenId(id), logit, probability: 0.0 });
        if (1..=SORTED_INSERTION_MAX).contains(&top_k) {
            // Ids ascend, so a logit that equals the last kept one ranks behind it.
            for candidate in possible {
                if self.candidates.len() == top_k {
                    if self.candidates.last().is_some_and(|last| candidate.logit <= last.logit) {
                        continue;
                    }
                    self.candidates.pop();
                }
                let place = self.candidates.partition_point(|c| c.logit >= candidate.logit);
                self.candidates.insert(place, candidate);
            }
        } else {
            self.candidates.extend(possible);
            if top_k > 0 && top_k < self.candidates.len() {
                self.candidates.select_nth_unstable_by(top_k - 1, by_rank);
                self.candidates.truncate(top_k);
            }
            self.candidates.sort_unstable_by(by_rank);
        }
        self.weigh(best_logit);
        Ok(&self.candidates)
    }

    /// Gives the sorted candidates their probabilities, and cuts off those that top-p and min-p leave out.
    fn weigh(&mut self, best_logit: f32) {
        let SamplerOptions { temperature, top_p, min_p, .. } = self.options;
        // The difference is divided, not the logits: a tiny temperature must not make infinities of them.
        let mut total = 0.0;
        for candidate in &mut self.candidates {
            candidate.probability =
                ((f64::from(candidate.logit) - f64::from(best_logit)) / f64::from(temperature)).exp();
            total += candidate.probability;
        }
        if top_p < 1.0 {
            let mut sum = 0.0;
            let reached = self.candidates.iter().position(|c| {
                sum += c.probability;
                sum >= f64::from(top_p) * total
            });
            self.candidates.truncate(reached.map_or(self.candidates.len(), |last| last + 1));
        }
        // The best one's probability is exp(0) = 1 here.
        let kept = self.candidates.iter().take_while(|c| c.probability >= f64::from(min_p)).count();
        self.candidates.truncate(kept.max(1));

        let total: f64 = self.candidates.iter().map(|c| c.probability).sum();
        for candidate in &mut self.candidates {
            candidate.probability /= total;
        }
    }

    /// Logits after the repetition penalty, all of them checked.
    fn penalize(&mut self, logits: &[f32], history: &[TokenId]) -> Result<&[f32], SamplerError> {
        if let Some((id, &found)) = (0u32..).zip(logits).find(|(_, l)| l.is_nan() || **l == f32::INFINITY) {
            return Err(SamplerError::NotFinite { token: TokenId(id), found });
        }
        self.penalized.clear();
        self.penalized.extend_from_slice(logits);
        let penalty = self.options.repetition_penalty;
        if penalty != 1.0 {
            for &token in history {
                // From the untouched logit: a token that occurred twice is penalized once.
                let Some(&logit) = logits.get(token.index()) else {
                    return Err(SamplerError::UnknownToken { token, vocab_size: logits.len() });
                };
                self.penalized[token.index()] = penalized(logit, penalty);
            }
        }
        Ok(&self.penalized)
    }
}

/// The logit of a token that occurred.
fn penalized(logit: f32, penalty: f32) -> f32 {
    if logit > 0.0 { logit / penalty } else { logit * penalty }
}

/// The best first, the lower id first among equals.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}

/// The greatest logit, which is above minus infinity; the lowest id of equals.
fn best(logits: &[f32]) -> Result<(TokenId, f32), SamplerError> {
    let mut best = None;
    let mut greatest = f32::NEG_INFINITY;
    for (id, &logit) in (0u32..).zip(logits) {
        if logit > greatest {
            greatest = logit;
            best = Some((TokenId(id), logit));
        }
    }
    best.ok_or(SamplerError::NoCandidate)
}

#[cfg(test)]
mod tests;
