//! `moe-run run`, and `moe-run` without a command: one prompt in, one answer out.

use std::time::{Duration, Instant};

use moe_run_backends::{
    Activations, KvType, Observer, generate::StopReason, sampler::SamplerOptions, session::LogitsRows,
};
use moe_run_graph::ids::TokenId;
use moe_run_text::{
    constraint::{Rule, Vocabulary},
    toolcalls::Answer,
};
use serde::Serialize;

use crate::{
    CliError, ExitCode,
    common::{BackendArgs, ModelArgs},
    engine::Engine,
    generate::{self, GenerateArgs, Outcome, generate_observed},
    output,
    prompt::{Prompt, PromptArgs},
    sampling::{SamplerArgs, read_back_line},
    save_args::{self, SaveArgs, SaveRequest},
};

/// Arguments of `run`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Which model
    #[command(flatten)]
    pub model: ModelArgs,

    /// What it is asked
    #[command(flatten)]
    pub prompt: PromptArgs,

    /// What may end the answer
    #[command(flatten)]
    pub generate: GenerateArgs,

    /// How tokens are chosen
    #[command(flatten)]
    pub sampler: SamplerArgs,

    /// What runs it
    #[command(flatten)]
    pub backend: BackendArgs,

    /// What is saved of the prompt's evaluation
    #[command(flatten)]
    pub save: SaveArgs,

    /// Print one JSON object instead of streaming the text
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// What `--json` prints.
#[derive(Serialize, Debug)]
struct Report<'a> {
    schema_version: u32,
    model: &'a str,
    text: &'a str,
    #[serde(flatten)]
    answer: Option<AnswerReport<'a>>,
    prompt_tokens: &'a [TokenId],
    output_tokens: &'a [TokenId],
    stop_reason: StopReason,
    timings: TimingsReport,
    backend: &'a str,
    device: &'a str,
    activations: Activations,
    kv_type: KvType,
    threads: usize,
    ctx_size: usize,
    sampling: SamplerOptions,
}

/// The text taken apart, where the model was given tools.
#[derive(Serialize, Debug)]
struct AnswerReport<'a> {
    content: &'a str,
    reasoning_content: &'a str,
    tool_calls: Vec<CallReport<'a>>,
}

#[derive(Serialize, Debug)]
struct CallReport<'a> {
    name: &'a str,
    /// JSON text, as the model wrote it: no number loses digits.
    arguments: &'a str,
}

impl<'a> AnswerReport<'a> {
    fn new(answer: &'a Answer) -> AnswerReport<'a> {
        let calls = answer.calls.iter();
        AnswerReport {
            content: &answer.content,
            reasoning_content: &answer.reasoning,
            tool_calls: calls
                .map(|call| CallReport { name: &call.name, arguments: &call.arguments })
                .collect(),
        }
    }
}

/// Times in seconds; rates are null where nothing was measured.
#[derive(Serialize, Debug)]
struct TimingsReport {
    load_seconds: f64,
    prompt_seconds: f64,
    prompt_tokens_per_second: Option<f64>,
    generation_seconds: f64,
    generation_tokens_per_second: Option<f64>,
    time_to_first_token_seconds: Option<f64>,
}

/// Arguments that have been read and checked: from here on only the model can be wrong.
struct Checked {
    model: ModelArgs,
    prompt: Prompt,
    generate: GenerateArgs,
    sampler: SamplerArgs,
    backend: BackendArgs,
    json: bool,
    save: Option<SaveRequest>,
    rule: Option<Rule>,
}

impl Checked {
    fn new(args: Args) -> Result<Checked, CliError> {
        let Args { model, prompt, generate, sampler, backend, json, save } = args;
        sampler.check()?;
        let save = save.check(&model)?;
        backend.check()?;
        let rule = generate.rule()?;
        let prompt = prompt.resolve()?;
        if rule.is_some() && prompt.has_tools() {
            return Err(CliError::bad_input(generate::RULE_AND_TOOLS));
        }
        Ok(Checked { model, prompt, generate, sampler, backend, json, save, rule })
    }
}

/// Answers one prompt.
///
/// Errors: arguments, model, backend, or a failure while running.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let Checked { model, prompt, generate: mut generate_args, sampler, backend, json, save, rule } =
        Checked::new(args)?;
    let started = Instant::now();
    let model = model.open()?;
    prompt.check_kind(model.metadata())?;
    let (mut sampler, sampling_line) = sampler.sampler(model.metadata())?;
    let mut options = backend.compile_options(&model)?;
    if let Some(save) = &save {
        save.prepare(&model, &mut options)?;
    }
    let mut engine = Engine::load_with(model, &backend, options, started)?;
    if engine.tokenizer.is_none() && !generate_args.stop.is_empty() {
        return Err(CliError::bad_input(
            "--stop: the file has no tokenizer, so there is no text to find it in",
        ));
    }
    let prompt_tokens = prompt.encode(&engine)?;
    let constraint = match rule {
        Some(rule) => {
            let lead = prompt.lead(&engine.model)?;
            Some(Vocabulary::new(engine.tokenizer()?)?.constrain(&rule, &lead)?)
        }
        None => None,
    };
    let mut view = prompt.answer_view(&engine.model, json)?;
    generate_args.spells_control_tokens = view.is_some();
    output::note(&sampling_line);
    if let Some(line) = read_back_line(&sampler, engine.session.executable()) {
        output::note(&line);
    }

    let rows = save.as_ref().map_or(LogitsRows::Last, SaveRequest::logits_rows);
    let mut sink = save.as_ref().map(|s| s.sink(&engine, &prompt_tokens)).transpose()?;
    let Engine { session, tokenizer, .. } = &mut engine;
    let outcome = generate_observed(
        session,
        tokenizer.as_ref(),
        &mut sampler,
        &prompt_tokens,
        &generate_args,
        constraint,
        rows,
        sink.as_mut().map(|s| s as &mut dyn Observer),
        |text| match &mut view {
            Some(view) => view.write(text),
            None if json => Ok(()),
            None => output::exact(text),
        },
    )?;
    let answer = view.map(|view| view.finish(outcome.stop_reason.is_model_end())).transpose()?;
    if json {
        output::json(&report(&engine, &prompt_tokens, &outcome, answer.as_ref(), sampler.options()))?;
    } else {
        output::text("\n")?;
    }
    output::note(&generate::summary(&outcome));
    if let Some(sink) = sink {
        if outcome.timings.prompt_tokens_evaluated < prompt_tokens.len() {
            output::warning("no tensors were saved: the prompt's evaluation was interrupted");
            return Err(CliError::Interrupted);
        }
        save_args::finish(sink)?;
    }
    outcome.failure.map_or(Ok(ExitCode::Ok), Err)
}

fn report<'a>(
    engine: &'a Engine,
    prompt_tokens: &'a [TokenId],
    outcome: &'a Outcome,
    answer: Option<&'a Answer>,
    sampling: &SamplerOptions,
) -> Report<'a> {
    let info = engine.session.info();
    let timings = &outcome.timings;
    Report {
        schema_version: 1,
        model: engine.model.metadata().origin(),
        text: &outcome.text,
        answer: answer.map(AnswerReport::new),
        prompt_tokens,
        output_tokens: &outcome.output_tokens,
        stop_reason: outcome.stop_reason,
        timings: TimingsReport {
            load_seconds: engine.load_time.as_secs_f64(),
            prompt_seconds: timings.prompt.as_secs_f64(),
            prompt_tokens_per_second: timings.prompt_tokens_per_second(),
            generation_seconds: timings.generation.as_secs_f64(),
            generation_tokens_per_second: timings.generation_tokens_per_second(),
            time_to_first_token_seconds: timings.first_token.as_ref().map(Duration::as_secs_f64),
        },
        backend: info.backend,
        device: &info.device,
        activations: info.activations,
        kv_type: info.kv_type,
        threads: info.threads,
        ctx_size: engine.session.capacity_tokens(),
        sampling: *sampling,
    }
}
