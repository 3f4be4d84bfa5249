//! The timed runs: random tokens in, seconds out.

use std::time::{Duration, Instant};

use moe_run_backends::{
    BackendError, DeviceKind, KvType, Observer,
    session::{LogitsRows, Session},
};
use moe_run_graph::{
    cost::{Cost, step_cost},
    ids::TokenId,
    ir::StepSizes,
    synth::Random,
};
use serde::Serialize;

use super::profile::{Profile, Profiler};
use crate::CliError;

/// What is timed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Tokens evaluated together.
    Prompt,
    /// Random tokens evaluated one after the other, each waited for.
    Generation,
    /// Tokens each chosen from the one before, as `moe-run run --temp 0` does.
    Greedy,
}

/// One test.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Test {
    /// What.
    pub kind: Kind,
    /// How many tokens are timed.
    pub tokens: usize,
    /// How many the cache holds before.
    pub depth: usize,
}

impl Test {
    /// llama-bench's name: pp512, tg128, tg128 @ d4096; greedy128 has none there.
    pub fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Prompt => "pp",
            Kind::Generation => "tg",
            Kind::Greedy => "greedy",
        };
        match self.depth {
            0 => format!("{kind}{}", self.tokens),
            depth => format!("{kind}{} @ d{depth}", self.tokens),
        }
    }

    /// Positions that the context must hold.
    pub fn context_tokens(&self) -> usize {
        self.depth.saturating_add(self.tokens)
    }
}

/// Tokens of a warm-up generation: enough that every part of the code and most pages of the weights have been seen.
const WARM_UP_TOKENS: usize = 16;

/// A session under test.
pub struct Bench<'a> {
    session: &'a mut Session,
    device: DeviceKind,
    kv_type: KvType,
    vocab_size: usize,
    random: Random,
}

impl<'a> Bench<'a> {
    /// A bench of a session on a device, with tokens below `vocab_size` from `seed`.
    pub fn new(
        session: &'a mut Session,
        device: DeviceKind,
        kv_type: KvType,
        vocab_size: usize,
        seed: u64,
    ) -> Bench<'a> {
        Bench { session, device, kv_type, vocab_size, random: Random::new(&[seed]) }
    }

    /// Runs a test: once to warm up, then `repetitions` times.
    ///
    /// Errors: what a step reports, and logits that are not finite: a wrong result has no speed.
    pub fn run(&mut self, test: Test, repetitions: usize) -> Result<Vec<Duration>, CliError> {
        self.fill(test.depth)?;
        let warm_up = match test.kind {
            Kind::Prompt => test,
            Kind::Generation | Kind::Greedy => Test { tokens: test.tokens.min(WARM_UP_TOKENS), ..test },
        };
        self.once(warm_up, None)?;
        (0..repetitions).map(|_| self.once(test, None)).collect()
    }

    /// Bytes that a test must move and arithmetic that it must do, by the plan.
    pub fn cost(&mut self, test: Test) -> Cost {
        let row_bytes = |elems| self.kv_type.row_bytes(elems);
        let step = match test.kind {
            Kind::Prompt => self.session.info().micro_batch,
            Kind::Generation | Kind::Greedy => 1,
        };
        let executable = self.session.executable();
        let steps = (0..test.tokens).step_by(step.max(1)).map(|first| {
            let tokens = step.min(test.tokens - first);
            let last = first + tokens == test.tokens;
            let rows = usize::from(test.kind != Kind::Prompt || last);
            let sizes = StepSizes { tokens, logits_rows: rows, cached: test.depth + first + tokens };
            step_cost(executable.plan(tokens), sizes, &row_bytes)
        });
        steps.sum()
    }

    /// Makes the cache hold `depth` random tokens.
    fn fill(&mut self, depth: usize) -> Result<(), CliError> {
        match self.session.truncate(depth) {
            // What is no longer held is read anew.
            Err(BackendError::Rewind { .. }) => self.session.truncate(0)?,
            done => done?,
        }
        let missing = self.tokens(depth - self.session.tokens().len());
        self.session.feed(&missing, LogitsRows::Last, None, |_, _| Ok(()))?;
        self.session.mark()?;
        // What a device still does of it must not count for the test that follows.
        Ok(self.session.wait()?)
    }

    /// Random but valid: one token repeated would time one set of experts.
    fn tokens(&mut self, count: usize) -> Vec<TokenId> {
        let below = self.vocab_size as u64;
        (0..count).map(|_| TokenId((self.random.next_u64() % below) as u32)).collect()
    }

    /// Runs a test once and adds up what each kind of launch takes.
    ///
    /// Errors: as [`Bench::run`].
    pub fn profile(&mut self, test: Test) -> Result<Profile, CliError> {
        self.fill(test.depth)?;
        let mut profiler = Profiler::new(self.kv_type);
        self.once(test, Some(&mut profiler))?;
        Ok(profiler.finish(test, self.session.info().threads))
    }

    fn once(&mut self, test: Test, mut profiler: Option<&mut Profiler>) -> Result<Duration, CliError> {
        self.session.truncate(test.depth)?;
        let tokens = self.tokens(test.tokens);
        let start = Instant::now();
        match test.kind {
            Kind::Prompt => {
                let observer = profiler.map(|p| p as &mut dyn Observer);
                self.session.feed(&tokens, LogitsRows::Last, observer, |_, _| Ok(()))?;
                self.wait()?;
            }
            Kind::Generation => {
                for token in tokens {
                    let observer = profiler.as_deref_mut().map(|p| p as &mut dyn Observer);
                    self.session.decode(token, observer)?;
                    self.wait()?;
                }
            }
            Kind::Greedy => {
                let mut token = tokens[0];
                for left in (0..test.tokens).rev() {
                    let observer = profiler.as_deref_mut().map(|p| p as &mut dyn Observer);
                    let watched = observer.is_some();
                    self.session.decode(token, observer)?;
                    if left > 0 && !watched {
                        self.session.queue_next()?;
                    }
                    token = self.session.argmax()?;
                }
            }
        }
        let elapsed = start.elapsed();
        let mut logits = Vec::new();
        self.session.logits(&mut logits)?;
        if let Some(id) = logits.iter().position(|x| !x.is_finite()) {
            return Err(CliError::failed(format!(
                "{}: logit {id} is {}; `moe-run trace` names the first operation that made one",
                test.name(),
                logits[id]
            )));
        }
        Ok(elapsed)
    }

    /// Waits for the device. A processor's step returns when it is done; of another device the best token is asked, as a
    /// generation would.
    fn wait(&mut self) -> Result<(), CliError> {
        if self.device != DeviceKind::Cpu {
            self.session.argmax()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_llama_benchs() {
        let test = |kind, depth| Test { kind, tokens: 512, depth }.name();
        assert_eq!(test(Kind::Prompt, 0), "pp512");
        assert_eq!(test(Kind::Generation, 4096), "tg512 @ d4096");
        assert_eq!(test(Kind::Greedy, 0), "greedy512");
    }
}
