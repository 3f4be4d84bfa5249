//! Prompt → text: evaluates a prompt, then samples and decodes token by token until something ends it.

use std::time::{Duration, Instant};

use moe_run_backends::{
    BackendError, Observer,
    sampler::Sampler,
    session::{LogitsRows, Session},
};
use moe_run_graph::ids::TokenId;
use moe_run_text::{
    stop::StopTexts,
    tokenizer::{StreamDecoder, Tokenizer},
};
use serde::Serialize;

use crate::{CliError, common, interrupt::Generation};

/// What may end a generation besides the model.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Generation")]
pub struct GenerateArgs {
    /// Tokens to generate at most [default: until the model ends or the context is full]
    #[arg(short = 'n', long, value_name = "TOKENS", allow_negative_numbers = true, value_parser = common::whole_number::<usize>)]
    pub max_tokens: Option<usize>,

    /// End before this text; may be given more than once
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = stop_text)]
    pub stop: Vec<String>,
}

/// A stop text of the command line.
///
/// Errors: it is empty.
fn stop_text(argument: &str) -> Result<String, String> {
    if argument.is_empty() {
        return Err("wanted a text of at least one character".to_owned());
    }
    Ok(argument.to_owned())
}

/// Why a generation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model chose a token that ends a generation.
    EndToken,
    /// A text of `--stop` came.
    StopText,
    /// `--max-tokens` are there.
    MaxTokens,
    /// The context has no room for another token.
    ContextFull,
    /// Ctrl-C.
    Interrupted,
    /// A step failed: [`Outcome::failure`] says how.
    Failed,
}

impl StopReason {
    /// For people.
    pub fn explain(self) -> &'static str {
        match self {
            StopReason::EndToken => "the model ended",
            StopReason::StopText => "a stop text came",
            StopReason::MaxTokens => "--max-tokens reached",
            StopReason::ContextFull => "the context is full: raise --ctx-size to go on",
            StopReason::Interrupted => "interrupted",
            StopReason::Failed => "it failed; what was generated until then is kept",
        }
    }
}

/// What came of a generation, one that failed on its way too.
#[derive(Debug)]
pub struct Outcome {
    /// The text, stop text excluded. Empty where there is no tokenizer.
    pub text: String,
    /// All tokens that were chosen, the end token excluded.
    pub output_tokens: Vec<TokenId>,
    /// What ended it.
    pub stop_reason: StopReason,
    /// What it took.
    pub timings: Timings,
    /// Why it could not go on, where a step failed behind the prompt.
    pub failure: Option<CliError>,
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
    /// Choosing, decoding and writing out tokens, from the end of the prompt to the end.
    pub generation: Duration,
}

impl Timings {
    /// Prompt tokens per second.
    pub fn prompt_tokens_per_second(&self) -> Option<f64> {
        rate(self.prompt_tokens_evaluated, self.prompt)
    }

    /// Generated tokens per second: steps after the prompt, whose own evaluation gives the first token.
    pub fn generation_tokens_per_second(&self) -> Option<f64> {
        rate(self.decode_steps, self.generation)
    }

    /// One line for people.
    pub fn summary(&self, output_tokens: usize, stop_reason: StopReason) -> String {
        let per_second = |rate: Option<f64>| rate.map_or(String::new(), |r| format!(" ({r:.1} tokens/s)"));
        let reused = match self.prompt_tokens_reused {
            0 => String::new(),
            reused => format!(" + {reused} kept"),
        };
        let first = self.first_token.map_or(String::new(), |t| format!("; first token after {}", seconds(t)));
        format!(
            "prompt: {}{reused} tokens in {}{}; generation: {output_tokens} tokens in {}{}{first}; {}",
            self.prompt_tokens_evaluated,
            seconds(self.prompt),
            per_second(self.prompt_tokens_per_second()),
            seconds(self.generation),
            per_second(self.generation_tokens_per_second()),
            stop_reason.explain()
        )
    }
}

fn rate(count: usize, time: Duration) -> Option<f64> {
    (count > 0 && !time.is_zero()).then(|| count as f64 / time.as_secs_f64())
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// Stops a prompt's evaluation between two micro-batches.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct InterruptedPrompt;

/// Evaluates a prompt (as far as the session does not hold it) and generates. `write` gets the text as it becomes certain;
/// without a tokenizer it gets ids, separated by blanks.
///
/// Errors: the prompt does not fit, a step fails, logits that are not numbers, or `write`'s.
pub fn generate(
    session: &mut Session,
    tokenizer: Option<&Tokenizer>,
    sampler: &mut Sampler,
    prompt: &[TokenId],
    args: &GenerateArgs,
    write: impl FnMut(&str) -> Result<(), CliError>,
) -> Result<Outcome, CliError> {
    generate_observed(session, tokenizer, sampler, prompt, args, LogitsRows::Last, None, write)
}

/// As [`generate`], with an observer of the prompt's evaluation and the rows of logits that it needs.
///
/// Errors: as [`generate`], and the observer's.
pub fn generate_observed(
    session: &mut Session,
    tokenizer: Option<&Tokenizer>,
    sampler: &mut Sampler,
    prompt: &[TokenId],
    args: &GenerateArgs,
    rows: LogitsRows,
    observer: Option<&mut dyn Observer>,
    mut write: impl FnMut(&str) -> Result<(), CliError>,
) -> Result<Outcome, CliError> {
    let started = Instant::now();
    let generation = Generation::begin();
    session.executable().expect_candidates(sampler.candidates_wanted().unwrap_or(1));
    let mut timings = Timings { prompt_tokens_reused: session.reuse_prefix(prompt)?, ..Timings::default() };
    let evaluate = &prompt[timings.prompt_tokens_reused..];
    let mut output_tokens = Vec::new();
    let mut text = String::new();
    let fed = session.feed(evaluate, rows, observer, |_, _| match generation.is_interrupted() {
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
            let stop_reason = StopReason::Interrupted;
            return Ok(Outcome { text, output_tokens, stop_reason, timings, failure: None });
        }
        Err(error) => return Err(error.into()),
    }

    let generation_started = Instant::now();
    let mut decoder =
        tokenizer.map_or_else(StreamDecoder::new, |tokenizer| StreamDecoder::behind(tokenizer, prompt));
    let mut stops = StopTexts::new(args.stop.iter().cloned());
    let mut emit = |piece: &str| -> Result<(), CliError> {
        if !piece.is_empty() {
            if tokenizer.is_some() {
                text.push_str(piece);
            }
            write(piece)?;
        }
        Ok(())
    };
    let mut read_back = ReadBack::default();
    let mut failure = None;
    let stop_reason = loop {
        if generation.is_interrupted() {
            break StopReason::Interrupted;
        }
        if args.max_tokens.is_some_and(|max| output_tokens.len() >= max) {
            break StopReason::MaxTokens;
        }
        let token = match next_token(session, sampler, &mut read_back, args, output_tokens.len()) {
            Ok(token) => token,
            Err(error) => {
                failure = Some(error);
                break StopReason::Failed;
            }
        };
        timings.first_token.get_or_insert_with(|| started.elapsed());
        if tokenizer.is_some_and(|t| t.is_end_of_generation(token)) {
            break StopReason::EndToken;
        }
        output_tokens.push(token);
        match tokenizer {
            Some(tokenizer) => {
                // The text and tokens until here are the outcome all the same.
                let piece = match decoder.push(tokenizer, token) {
                    Ok(piece) => piece,
                    Err(error) => {
                        failure = Some(error.into());
                        break StopReason::Failed;
                    }
                };
                let passed = stops.push(&piece);
                emit(&passed.text)?;
                if passed.stopped {
                    break StopReason::StopText;
                }
            }
            None if output_tokens.len() == 1 => emit(&token.to_string())?,
            None => emit(&format!(" {token}"))?,
        }
        if args.max_tokens == Some(output_tokens.len()) {
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
    if stop_reason != StopReason::StopText {
        let rest = stops.push(&decoder.finish());
        emit(&rest.text)?;
        emit(&stops.finish())?;
    }
    timings.generation = generation_started.elapsed();
    Ok(Outcome { text, output_tokens, stop_reason, timings, failure })
}

/// What choosing a token reads; kept from token to token.
#[derive(Default)]
struct ReadBack {
    logits: Vec<f32>,
    candidates: Vec<(TokenId, f32)>,
}

/// The next token, of which `chosen` are there already.
fn next_token(
    session: &mut Session,
    sampler: &mut Sampler,
    read_back: &mut ReadBack,
    args: &GenerateArgs,
    chosen: usize,
) -> Result<TokenId, CliError> {
    if sampler.is_plain_argmax() {
        // The step of the token that a device is about to choose is queued before the token is read.
        if args.max_tokens.is_none_or(|max| chosen + 1 < max) {
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
