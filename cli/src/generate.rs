//! Prompt → text: what the runtime generates, as text, until a stop text or a Ctrl-C.

use std::{ops::ControlFlow, path::Path, time::Duration};

use moe_run_backends::{
    Observer,
    generate::{self, ConstraintFailure, GenerateOptions, Generated, StopReason, Timings},
    sampler::Sampler,
    session::{LogitsRows, Session},
};
use moe_run_graph::ids::TokenId;
use moe_run_text::{
    constraint::{Constraint, Rule},
    stop::{StopTexts, TextStream},
    tokenizer::Tokenizer,
};

use crate::{CliError, common, inputs, interrupt::Generation};

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

    /// Hold the answer to a JSON schema: a file, or the schema itself, which begins with `{`. A keyword that cannot be held is
    /// refused. Where the model reasons first, what comes behind its reasoning is held, here as in --grammar and --regex
    #[arg(long, value_name = "FILE|JSON", group = "constraint")]
    pub json_schema: Option<String>,

    /// Hold the answer to a grammar in llguidance's dialect of Lark: a file, or the grammar itself, which has a rule `start:`
    #[arg(long, value_name = "FILE|TEXT", group = "constraint")]
    pub grammar: Option<String>,

    /// Hold the answer to a regular expression, which matches all of it
    #[arg(long, value_name = "PATTERN", group = "constraint", allow_hyphen_values = true)]
    pub regex: Option<String>,

    /// Control tokens are given as text, too, as what reads calls of tools wants it. No option.
    #[arg(skip)]
    pub spells_control_tokens: bool,
}

impl GenerateArgs {
    /// What the answer is held to, where it is.
    ///
    /// Errors: a file cannot be read, or a schema is not JSON.
    pub fn rule(&self) -> Result<Option<Rule>, CliError> {
        if let Some(given) = &self.json_schema {
            let is_text = given.trim_start().starts_with('{') || ["true", "false"].contains(&given.trim());
            let (text, origin) = match is_text {
                true => (given.clone(), "--json-schema"),
                false => (inputs::read_text(Path::new(given), "the schema")?, given.as_str()),
            };
            let schema = serde_json::from_str(&text)
                .map_err(|e| CliError::bad_input(format!("{origin}: not valid JSON: {e}")))?;
            return Ok(Some(Rule::JsonSchema(schema)));
        }
        if let Some(given) = &self.grammar {
            return Ok(Some(Rule::Grammar(match given.contains("start:") {
                true => given.clone(),
                false => inputs::read_text(Path::new(given), "the grammar")?,
            })));
        }
        Ok(self.regex.clone().map(Rule::Regex))
    }
}

/// What is said where tools and a rule are given together.
pub const RULE_AND_TOOLS: &str = "--tools: an answer that is held to a rule has no calls; wanted --tools or one of --json-schema, --grammar and --regex";

/// A text's constraint as the runtime asks it.
struct Held(Constraint);

impl generate::Constraint for Held {
    fn allowed(&mut self) -> Result<&[u32], ConstraintFailure> {
        Ok(self.0.allowed()?.words())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintFailure> {
        Ok(self.0.accept(token)?)
    }

    fn is_complete(&self) -> bool {
        self.0.is_complete()
    }
}

/// Why a generation ended, for people.
fn explain(reason: StopReason) -> &'static str {
    match reason {
        StopReason::EndToken => "the model ended",
        StopReason::StopText => "a stop text came",
        StopReason::ConstraintComplete => "the text is complete",
        StopReason::MaxTokens => "--max-tokens reached",
        StopReason::ContextFull => "the context is full: raise --ctx-size to go on",
        StopReason::Interrupted => "interrupted",
        StopReason::Failed => "it failed; what was generated until then is kept",
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

/// What a generation took, one line for people.
pub fn summary(outcome: &Outcome) -> String {
    let Outcome { text: _, output_tokens, stop_reason, timings, failure: _ } = outcome;
    let per_second = |rate: Option<f64>| rate.map_or(String::new(), |r| format!(" ({r:.1} tokens/s)"));
    let reused = match timings.prompt_tokens_reused {
        0 => String::new(),
        reused => format!(" + {reused} kept"),
    };
    let first = timings.first_token.map_or(String::new(), |t| format!("; first token after {}", seconds(t)));
    format!(
        "prompt: {}{reused} tokens in {}{}; generation: {} tokens in {}{}{first}; {}",
        timings.prompt_tokens_evaluated,
        seconds(timings.prompt),
        per_second(timings.prompt_tokens_per_second()),
        output_tokens.len(),
        seconds(timings.generation),
        per_second(timings.generation_tokens_per_second()),
        explain(*stop_reason)
    )
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
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
    constraint: Option<Constraint>,
    write: impl FnMut(&str) -> Result<(), CliError>,
) -> Result<Outcome, CliError> {
    generate_observed(session, tokenizer, sampler, prompt, args, constraint, LogitsRows::Last, None, write)
}

/// As [`generate()`], with an observer of the prompt's evaluation and the rows of logits that it needs.
///
/// Errors: as [`generate()`], and the observer's.
pub fn generate_observed(
    session: &mut Session,
    tokenizer: Option<&Tokenizer>,
    sampler: &mut Sampler,
    prompt: &[TokenId],
    args: &GenerateArgs,
    constraint: Option<Constraint>,
    rows: LogitsRows,
    observer: Option<&mut dyn Observer>,
    mut write: impl FnMut(&str) -> Result<(), CliError>,
) -> Result<Outcome, CliError> {
    let generation = Generation::begin();
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        rows,
        is_end: &|token| tokenizer.is_some_and(|t| t.is_end_of_generation(token)),
        is_interrupted: &|| generation.is_interrupted(),
    };
    let stops = StopTexts::new(args.stop.iter().cloned());
    let mut stream = tokenizer.map(|tokenizer| TextStream::behind(tokenizer, prompt, stops));
    if args.spells_control_tokens {
        stream = stream.map(TextStream::with_control_tokens);
    }
    let mut held = constraint.map(Held);
    let constraint = held.as_mut().map(|held| held as &mut dyn generate::Constraint);
    let (mut text, mut first, mut no_text) = (String::new(), true, None);
    let generated = generate::generate(session, sampler, prompt, &options, constraint, observer, |token| {
        let Some(stream) = &mut stream else {
            let blank = if std::mem::take(&mut first) { "" } else { " " };
            return write(&format!("{blank}{token}")).map(|()| ControlFlow::Continue(()));
        };
        let passed = match stream.push(token) {
            Ok(passed) => passed,
            // The text and tokens until here are the outcome all the same.
            Err(error) => {
                no_text = Some(CliError::from(error));
                return Ok(ControlFlow::Break(StopReason::Failed));
            }
        };
        if !passed.text.is_empty() {
            text.push_str(&passed.text);
            write(&passed.text)?;
        }
        Ok(if passed.stopped { ControlFlow::Break(StopReason::StopText) } else { ControlFlow::Continue(()) })
    })?;
    let Generated { tokens: output_tokens, stop_reason, timings, failure } = generated;
    if let Some(stream) = &mut stream
        && stop_reason != StopReason::StopText
    {
        let rest = stream.finish();
        if !rest.is_empty() {
            text.push_str(&rest);
            write(&rest)?;
        }
    }
    let failure = failure.map(CliError::from).or(no_text);
    Ok(Outcome { text, output_tokens, stop_reason, timings, failure })
}
