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
}

impl Sampler {
    /// A sampler at the beginning of its random numbers.
    ///
    /// # Errors
    /// [`SamplerError::Option`] for an option outside of its range.
    pub fn new(options: SamplerOptions) -> Result<Sampler, SamplerError> {
        options.check()?;
        let random = Xoshiro256PlusPlus::from_seed(options.seed);
        Ok(Sampler { options, random, penalized: Vec::new(), candidates: Vec::new() })
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

    /// How many of the best logits say all that this sampler asks, so that an executable may choose them on its device and
    /// nothing else is read back: top-k, where it is no more than [`MAX_CANDIDATES`] and no repetition penalty may lift a
    /// token that is not among them. `None`: it needs every logit.
    #[must_use]
    pub fn candidates_wanted(&self) -> Option<usize> {
        let SamplerOptions { temperature, top_k, repetition_penalty, .. } = self.options;
        let fits = temperature > 0.0 && repetition_penalty == 1.0 && (1..=MAX_CANDIDATES).contains(&top_k);
        fits.then_some(top_k)
    }

    /// The next token from [`Sampler::candidates_wanted`] of the best logits, best first, the lower id first among equals:
    /// the same token that [`Sampler::sample`] draws from all of them.
    ///
    /// # Errors
    /// As for [`Sampler::sample`].
    pub fn sample_candidates(&mut self, best: &[(TokenId, f32)]) -> Result<TokenId, SamplerError> {
        let Some(&(token, best_logit)) = best.first() else { return Err(SamplerError::NoCandidate) };
        if best_logit == f32::INFINITY {
            return Err(SamplerError::NotFinite { token, found: best_logit });
        }
        self.candidates.clear();
        let candidate = |&(token, logit): &(TokenId, f32)| Candidate { token, logit, probability: 0.0 };
        self.candidates.extend(best.iter().map(candidate));
        self.weigh(best_logit);
        self.draw()
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
            let by_rank = |a: &Candidate, b: &Candidate| {
                b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
            };
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
                self.penalized[token.index()] = if logit > 0.0 { logit / penalty } else { logit * penalty };
            }
        }
        Ok(&self.penalized)
    }
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

/// xoshiro256++ 1.0 (Blackman and Vigna, prng.di.unimi.it, public domain), its state filled by splitmix64 as they advise.
#[derive(Debug, Clone)]
struct Xoshiro256PlusPlus {
    state: [u64; 4],
}

impl Xoshiro256PlusPlus {
    fn from_seed(seed: u64) -> Self {
        let mut split = seed;
        let mut next = || {
            split = split.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = split;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        Xoshiro256PlusPlus { state: [next(), next(), next(), next()] }
    }

    fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// In [0, 1): the upper 53 bits, all that an f64 below 1 can hold evenly.
    fn next_unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs that the authors' C code gives.
    #[test]
    fn the_generator_is_xoshiro() {
        let mut random = Xoshiro256PlusPlus { state: [1, 2, 3, 4] };
        for expected in [41943041, 58720359, 3588806011781223, 3591011842654386, 9228616714210784205] {
            assert_eq!(random.next_u64(), expected);
        }
        // splitmix64 from 1234567.
        let seeded = Xoshiro256PlusPlus::from_seed(1234567);
        assert_eq!(seeded.state[..3], [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    /// The definition, written plainly: probabilities in f64 over the whole vocabulary, 0 for what is cut off.
    fn definition(o: &SamplerOptions, logits: &[f32], history: &[TokenId]) -> Vec<f64> {
        let penalized: Vec<f64> = logits
            .iter()
            .enumerate()
            .map(|(id, &l)| match history.contains(&TokenId(id as u32)) {
                true if l > 0.0 => f64::from(l / o.repetition_penalty),
                true => f64::from(l * o.repetition_penalty),
                false => f64::from(l),
            })
            .collect();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| penalized[b].total_cmp(&penalized[a]).then(a.cmp(&b)));
        if o.top_k > 0 {
            order.truncate(o.top_k);
        }
        let softmax = |order: &[usize]| -> Vec<f64> {
            let e: Vec<f64> = order
                .iter()
                .map(|&i| ((penalized[i] - penalized[order[0]]) / f64::from(o.temperature)).exp())
                .collect();
            let sum: f64 = e.iter().sum();
            e.iter().map(|x| x / sum).collect()
        };
        let p = softmax(&order);
        let mut keep = 0;
        let mut sum = 0.0;
        while keep < order.len() && (sum < f64::from(o.top_p) || o.top_p == 1.0) {
            sum += p[keep];
            keep += 1;
        }
        order.truncate(keep);
        let keep = order.iter().zip(&p).filter(|(_, pi)| **pi >= f64::from(o.min_p) * p[0]).count();
        order.truncate(keep.max(1));
        let mut all = vec![0.0; logits.len()];
        for (&id, p) in order.iter().zip(softmax(&order)) {
            all[id] = p;
        }
        all
    }

    fn random_case(random: &mut Xoshiro256PlusPlus) -> (SamplerOptions, Vec<f32>, Vec<TokenId>) {
        let mut pick = |n: u64| random.next_u64() % n;
        let len = 1 + [40, 40, 40, 300][pick(4) as usize];
        let len = 1 + pick(len);
        // Quarters: equal logits are common, so ties are tested.
        let logits: Vec<f32> = (0..len).map(|_| pick(64) as f32 / 4.0 - 8.0).collect();
        let history = (0..pick(6)).map(|_| TokenId(pick(len) as u32)).collect();
        let options = SamplerOptions {
            temperature: [0.1, 0.7, 1.0, 3.0][pick(4) as usize],
            top_k: [0, 1, 3, 20, 100, 129][pick(6) as usize],
            top_p: [1.0, 0.95, 0.8, 0.3, 1e-6][pick(5) as usize],
            min_p: [0.0, 0.05, 0.5, 1.0][pick(4) as usize],
            repetition_penalty: [1.0, 1.1, 2.0, 0.5][pick(4) as usize],
            seed: pick(1000),
        };
        (options, logits, history)
    }

    #[test]
    fn the_distribution_is_the_definition() {
        let mut random = Xoshiro256PlusPlus::from_seed(7);
        for _ in 0..20_000 {
            let (options, logits, history) = random_case(&mut random);
            let wanted = definition(&options, &logits, &history);
            let mut sampler = Sampler::new(options).unwrap();
            let mut found = vec![0.0; logits.len()];
            for candidate in sampler.distribution(&logits, &history).unwrap() {
                assert_eq!(found[candidate.token.index()], 0.0);
                found[candidate.token.index()] = candidate.probability;
            }
            let worst = found.iter().zip(&wanted).map(|(f, w)| (f - w).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-12, "{options:?} {logits:?} {history:?}: {found:?}, wanted {wanted:?}");
        }
    }

    /// Candidates alone give the token that all logits give, for every seed.
    #[test]
    fn candidates_draw_what_all_logits_draw() {
        let mut random = Xoshiro256PlusPlus::from_seed(11);
        let (mut best, mut compared) = (Vec::new(), 0);
        for _ in 0..20_000 {
            let (options, logits, history) = random_case(&mut random);
            let mut whole = Sampler::new(options).unwrap();
            let Some(count) = whole.candidates_wanted() else {
                assert!(
                    options.top_k == 0 || options.top_k > MAX_CANDIDATES || options.repetition_penalty != 1.0
                );
                continue;
            };
            let mut from_candidates = whole.clone();
            crate::choice::best_candidates(&logits, count, &mut best).unwrap();
            for _ in 0..3 {
                let wanted = whole.sample(&logits, &history).unwrap();
                assert_eq!(from_candidates.sample_candidates(&best), Ok(wanted), "{options:?} {logits:?}");
                assert_eq!(from_candidates.candidates, whole.candidates);
            }
            compared += 1;
        }
        assert!(compared > 2000, "{compared}");
        let mut sampler =
            Sampler::new(SamplerOptions { temperature: 1.0, ..SamplerOptions::GREEDY }).unwrap();
        assert_eq!(sampler.sample_candidates(&[]), Err(SamplerError::NoCandidate));
        let infinite = sampler.sample_candidates(&[(TokenId(3), f32::INFINITY)]);
        assert!(matches!(infinite, Err(SamplerError::NotFinite { token: TokenId(3), .. })));
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [1.0, 3.0, -2.0, 2.5, 0.0, 2.5];
        let options = SamplerOptions { temperature: 0.9, seed: 3, ..SamplerOptions::GREEDY };
        let wanted = definition(&options, &logits, &[]);
        let mut sampler = Sampler::new(options).unwrap();
        const DRAWS: usize = 200_000;
        let mut counts = [0usize; 6];
        for _ in 0..DRAWS {
            counts[sampler.sample(&logits, &[]).unwrap().index()] += 1;
        }
        for (&count, &p) in counts.iter().zip(&wanted) {
            // Five standard deviations of a binomial count.
            let bound = 5.0 * (DRAWS as f64 * p * (1.0 - p)).sqrt();
            assert!((count as f64 - DRAWS as f64 * p).abs() < bound, "{counts:?}, wanted shares {wanted:?}");
        }
    }

    #[test]
    fn one_seed_one_text() {
        let texts = |seed| {
            let options = SamplerOptions { temperature: 1.0, seed, ..SamplerOptions::GREEDY };
            let mut sampler = Sampler::new(options).unwrap();
            (0..50).map(|_| sampler.sample(&[0.0; 100], &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(texts(5), texts(5));
        assert_ne!(texts(5), texts(6));
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals_and_heeds_the_penalty() {
        let mut greedy = Sampler::new(SamplerOptions::GREEDY).unwrap();
        assert_eq!(greedy.sample(&[1.0, 5.0, 5.0, f32::NEG_INFINITY], &[]), Ok(TokenId(1)));
        assert!(greedy.is_plain_argmax());
        let penalty = SamplerOptions { repetition_penalty: 2.0, ..SamplerOptions::GREEDY };
        let mut penalized = Sampler::new(penalty).unwrap();
        assert!(!penalized.is_plain_argmax());
        assert_eq!(penalized.sample(&[4.0, 5.0, 3.0], &[TokenId(1), TokenId(1)]), Ok(TokenId(0)));
        assert_eq!(penalized.sample(&[-4.0, -3.0], &[TokenId(1)]), Ok(TokenId(0)));
        // A penalty must not bring back what is impossible.
        assert_eq!(penalized.sample(&[-1.0, f32::NEG_INFINITY], &[TokenId(1)]), Ok(TokenId(0)));
    }

    #[test]
    fn extreme_logits_and_temperatures() {
        let options = SamplerOptions { temperature: 1e-30, ..SamplerOptions::GREEDY };
        let mut cold = Sampler::new(options).unwrap();
        assert_eq!(cold.sample(&[f32::MAX, f32::MIN, 0.0], &[]), Ok(TokenId(0)));
        assert_eq!(cold.sample(&[-1e38, -1.1e38], &[]), Ok(TokenId(0)));
    }

    #[test]
    fn what_is_not_a_number_is_named() {
        for options in [SamplerOptions::GREEDY, SamplerOptions { temperature: 1.0, ..SamplerOptions::GREEDY }]
        {
            let mut sampler = Sampler::new(options).unwrap();
            let error = sampler.sample(&[0.0, f32::NAN, f32::INFINITY], &[]).unwrap_err();
            assert!(error.to_string().contains("token 1: found NaN"), "{error}");
            let infinite = sampler.sample(&[0.0, f32::INFINITY], &[]);
            assert!(matches!(infinite, Err(SamplerError::NotFinite { token: TokenId(1), .. })));
            assert_eq!(sampler.sample(&[], &[]), Err(SamplerError::NoCandidate));
            assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3], &[]), Err(SamplerError::NoCandidate));
        }
        let penalty = SamplerOptions { repetition_penalty: 1.5, ..SamplerOptions::GREEDY };
        let unknown = Sampler::new(penalty).unwrap().sample(&[0.0], &[TokenId(1)]);
        assert_eq!(unknown, Err(SamplerError::UnknownToken { token: TokenId(1), vocab_size: 1 }));
    }

    #[test]
    fn options_outside_of_their_range_are_named() {
        let g = SamplerOptions::GREEDY;
        for (options, name) in [
            (SamplerOptions { temperature: -1.0, ..g }, "temperature"),
            (SamplerOptions { temperature: f32::NAN, ..g }, "temperature"),
            (SamplerOptions { top_p: 0.0, ..g }, "top_p"),
            (SamplerOptions { top_p: 1.5, ..g }, "top_p"),
            (SamplerOptions { min_p: f32::NAN, ..g }, "min_p"),
            (SamplerOptions { repetition_penalty: 0.0, ..g }, "repetition_penalty"),
        ] {
            assert!(matches!(Sampler::new(options), Err(SamplerError::Option { name: n, .. }) if n == name));
        }
    }
}
