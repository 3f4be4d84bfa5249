//! Stage 7: prompt → tokens: evaluates a prompt, then chooses and decodes token by token until something ends it.
//!
//! Input: a session, a sampler, a prompt. Output: tokens, handed out as they are chosen, and what they took. Deliberately absent:
//! text (what a token says, and whether a text has come to its end, is the caller's, who ends a generation by the answer to a
//! token), and any printing.

use crate::error::BackendError;
use crate::executable::Observer;
use crate::sampler::{Sampler, SamplerError};
use crate::session::{LogitsRows, Session};
use moe_run_graph::ids::TokenId;
use serde::Serialize;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// What a generation is held to.
#[derive(Clone, Copy)]
pub struct GenerateOptions<'a> {
    /// Tokens at most; `None` for as many as the context holds.
    pub max_tokens: Option<usize>,
    /// The rows of logits that the prompt's evaluation computes.
    pub rows: LogitsRows,
    /// Whether a token ends a generation; such a one is not handed out.
    pub is_end: &'a dyn Fn(TokenId) -> bool,
    /// Asked before each token and between the prompt's micro-batches: whether to end now.
    pub is_interrupted: &'a dyn Fn() -> bool,
}

impl Default for GenerateOptions<'_> {
    fn default() -> Self {
        GenerateOptions {
            max_tokens: None,
            rows: LogitsRows::Last,
            is_end: &|_| false,
            is_interrupted: &|| false,
        }
    }
}

/// What a text is held to: which tokens may come next. A generation asks before each choice and tells what was chosen.
pub trait Constraint: Send {
    /// A bit for each token that may come next, 32 a word, the lowest first; a token without a bit may not come. Tokens that
    /// end a generation are among them where the text may end here. Asked again before the next token is accepted, it says
    /// the same: an engine asks once beside the step that computes the logits, and again when they are there.
    ///
    /// # Errors
    /// Telling them costs more than is allowed.
    fn allowed(&mut self) -> Result<&[u32], ConstraintFailure>;

    /// `token` comes next.
    ///
    /// # Errors
    /// It was not allowed, or taking it costs more than is allowed.
    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintFailure>;

    /// Whether the text is complete, and nothing can follow but its end.
    fn is_complete(&self) -> bool;
}

/// Why a text can no longer be held to its constraint: the constraint's own error.
pub type ConstraintFailure = Box<dyn std::error::Error + Send + Sync>;

/// Why a generation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model chose a token that ends a generation.
    EndToken,
    /// A text came that was to end it: the caller's answer to a token.
    StopText,
    /// The text is what it is held to, and nothing can follow.
    ConstraintComplete,
    /// As many tokens as were allowed are there.
    MaxTokens,
    /// The context has no room for another token.
    ContextFull,
    /// It was interrupted.
    Interrupted,
    /// It could not go on: [`Generated::failure`] says why, unless the caller said this.
    Failed,
}

impl StopReason {
    /// Whether the model itself came to an end.
    #[must_use]
    pub fn is_model_end(self) -> bool {
        matches!(self, StopReason::EndToken | StopReason::StopText | StopReason::ConstraintComplete)
    }
}

/// What came of a generation, one that failed on its way too.
#[derive(Debug)]
pub struct Generated {
    /// All tokens that were handed out.
    pub tokens: Vec<TokenId>,
    /// What ended it.
    pub stop_reason: StopReason,
    /// What it took.
    pub timings: Timings,
    /// Why it could not go on, where that was behind the prompt.
    pub failure: Option<GenerateError>,
}

/// Why a generation could not go on.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A step failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// No token could be chosen.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The text can no longer be held to its constraint.
    #[error(transparent)]
    Constraint(ConstraintFailure),
}

/// What a generation took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Tokens of the prompt that the KV cache held already.
    pub prompt_tokens_reused: usize,
    /// Tokens of the prompt that were evaluated.
    pub prompt_tokens_evaluated: usize,
    /// Evaluating them.
    pub prompt: Duration,
    /// From the start to the first token, if one was chosen.
    pub first_token: Option<Duration>,
    /// Steps of one token after the prompt.
    pub decode_steps: usize,
    /// Choosing, decoding and handing out tokens, from the end of the prompt to the end.
    pub generation: Duration,
}

impl Timings {
    /// Prompt tokens per second.
    #[must_use]
    pub fn prompt_tokens_per_second(&self) -> Option<f64> {
        rate(self.prompt_tokens_evaluated, self.prompt)
    }

    /// Generated tokens per second: steps after the prompt, whose own evaluation gives the first token.
    #[must_use]
    pub fn generation_tokens_per_second(&self) -> Option<f64> {
        rate(self.decode_steps, self.generation)
    }
}

fn rate(count: usize, time: Duration) -> Option<f64> {
    (count > 0 && !time.is_zero()).then(|| count as f64 / time.as_secs_f64())
}

/// Stops a prompt's evaluation between two micro-batches.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct InterruptedPrompt;

/// Evaluates a prompt (as far as the session does not hold it) and generates, held to `constraint` where there is one.
/// `on_token` gets each token as it is chosen, and says whether to go on, or why not.
///
/// # Errors
/// The prompt does not fit, its evaluation or its observer fails; what `on_token` reports. What fails behind the prompt is in
/// [`Generated::failure`], beside the tokens until then.
pub fn generate<E: From<BackendError>>(
    session: &mut Session,
    sampler: &mut Sampler,
    prompt: &[TokenId],
    options: &GenerateOptions<'_>,
    mut constraint: Option<&mut dyn Constraint>,
    observer: Option<&mut dyn Observer>,
    mut on_token: impl FnMut(TokenId) -> Result<ControlFlow<StopReason>, E>,
) -> Result<Generated, E> {
    let started = Instant::now();
    session.executable().expect_candidates(sampler.candidates_wanted().unwrap_or(1));
    let mut timings = Timings { prompt_tokens_reused: session.reuse_prefix(prompt)?, ..Timings::default() };
    let evaluate = &prompt[timings.prompt_tokens_reused..];
    let mut tokens = Vec::new();
    let fed = session.feed(evaluate, options.rows, observer, |_, _| match (options.is_interrupted)() {
        true => Err(BackendError::Observer(Box::new(InterruptedPrompt))),
        false => Ok(()),
    });
    // A device may still be at it: its time is the prompt's, not the first token's.
    let fed = fed.and_then(|()| session.wait());
    timings.prompt = started.elapsed();
    match fed {
        Ok(()) => timings.prompt_tokens_evaluated = evaluate.len(),
        Err(BackendError::Observer(cause)) if cause.is::<InterruptedPrompt>() => {
            timings.prompt_tokens_evaluated = session.tokens().len() - timings.prompt_tokens_reused;
            return Ok(Generated { tokens, stop_reason: StopReason::Interrupted, timings, failure: None });
        }
        Err(error) => return Err(error.into()),
    }
    let generation_started = Instant::now();
    let mut read_back = ReadBack::default();
    let mut failure = None;
    let stop_reason = loop {
        if (options.is_interrupted)() {
            break StopReason::Interrupted;
        }
        if options.max_tokens.is_some_and(|max| tokens.len() >= max) {
            break StopReason::MaxTokens;
        }
        if constraint.as_ref().is_some_and(|constraint| constraint.is_complete()) {
            break StopReason::ConstraintComplete;
        }
        let is_last = options.max_tokens.is_some_and(|max| tokens.len() + 1 >= max);
        let chosen = match &mut constraint {
            Some(constraint) => next_allowed(session, sampler, &mut read_back, *constraint),
            None => next_token(session, sampler, &mut read_back, is_last),
        };
        let token = match chosen {
            Ok(token) => token,
            Err(error) => {
                failure = Some(error);
                break StopReason::Failed;
            }
        };
        timings.first_token.get_or_insert_with(|| started.elapsed());
        if (options.is_end)(token) {
            break StopReason::EndToken;
        }
        tokens.push(token);
        if let ControlFlow::Break(reason) = on_token(token)? {
            break reason;
        }
        if is_last {
            break StopReason::MaxTokens;
        }
        if session.tokens().len() >= session.capacity_tokens() {
            break StopReason::ContextFull;
        }
        if let Err(error) = session.decode(token, None) {
            failure = Some(error.into());
            break StopReason::Failed;
        }
        timings.decode_steps += 1;
    };
    timings.generation = generation_started.elapsed();
    Ok(Generated { tokens, stop_reason, timings, failure })
}

/// What choosing a token reads; kept from token to token.
#[derive(Default)]
struct ReadBack {
    logits: Vec<f32>,
    candidates: Vec<(TokenId, f32)>,
}

/// The next token among those that a constraint allows; it is told of it.
fn next_allowed(
    session: &mut Session,
    sampler: &mut Sampler,
    read_back: &mut ReadBack,
    constraint: &mut dyn Constraint,
) -> Result<TokenId, GenerateError> {
    session.choosable_logits(&mut read_back.logits)?;
    let allowed = constraint.allowed().map_err(GenerateError::Constraint)?;
    let token = sampler.sample_allowed(&mut read_back.logits, allowed, session.tokens())?;
    constraint.accept(token).map_err(GenerateError::Constraint)?;
    Ok(token)
}

/// The next token; unless it is the last one that is wanted, a device may begin its step already.
fn next_token(
    session: &mut Session,
    sampler: &mut Sampler,
    read_back: &mut ReadBack,
    is_last: bool,
) -> Result<TokenId, GenerateError> {
    if sampler.is_plain_argmax() {
        // The step of the token that a device is about to choose is queued before the token is read.
        if !is_last {
            session.queue_next()?;
        }
        return Ok(session.argmax()?);
    }
    if let Some(count) = sampler.candidates_wanted() {
        session.candidates(count, &mut read_back.candidates)?;
        if let Some(token) = sampler.sample_candidates(&read_back.candidates, session.tokens())? {
            return Ok(token);
        }
    }
    session.choosable_logits(&mut read_back.logits)?;
    Ok(sampler.sample(&read_back.logits, session.tokens())?)
}
