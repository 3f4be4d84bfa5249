//! `moe-run perplexity`: how well a model predicts a text, in llama.cpp's chunks, and how far it is from another run.

use std::{num::NonZeroUsize, path::PathBuf, time::Instant};

use moe_run_backends::{CompileOptions, partial_file, session::Session};
use moe_run_graph::Model;
use moe_run_inspect::perplexity::{
    Chunks, Companions, Divergence, LogitsFileError, LogitsReader, LogitsWriter, Perplexity, PerplexityError,
    perplexity,
};
use moe_run_text::tokenizer::ControlTokens;
use serde::Serialize;

use crate::{
    CliError, ExitCode,
    common::{self, BackendArgs, ModelArgs},
    engine, inputs, output, output_file, progress, prompt,
};

/// Tokens of a chunk unless `--ctx-size` says otherwise: llama.cpp's.
pub const DEFAULT_CHUNK_TOKENS: usize = 512;

/// The option of the output, for errors.
const SAVE_LOGITS: &str = "--save-logits";

/// The largest step: the rows of logits that it leaves take memory (a vocabulary of 151,936 takes 156 MB).
pub const MICRO_BATCH_TOKENS: usize = 256;

/// Arguments of `perplexity`.
#[derive(clap::Args, Debug)]
#[command(mut_arg("ctx_size", |arg| arg.help(format!("Tokens of a chunk [default: {DEFAULT_CHUNK_TOKENS}]"))))]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The text, in UTF-8, with a byte order mark or without
    #[arg(short, long, value_name = "TEXT")]
    file: PathBuf,

    /// Score so many chunks of --ctx-size tokens at most [default: all]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = common::whole_number::<NonZeroUsize>)]
    chunks: Option<NonZeroUsize>,

    /// Save the logits of every scored position, in the place of a file that is there
    #[arg(long, value_name = "FILE")]
    save_logits: Option<PathBuf>,

    /// Compare with saved logits of the same text: KL divergence, agreement of the most likely token
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,

    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    backend: BackendArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    schema_version: u32,
    #[serde(flatten)]
    perplexity: Perplexity,
    ctx_size: usize,
    backend: &'static str,
    device: String,
    activations: String,
    kv_type: String,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    divergence: Option<Divergence>,
}

impl From<PerplexityError> for CliError {
    fn from(error: PerplexityError) -> CliError {
        match error {
            PerplexityError::Backend(error) => error.into(),
            PerplexityError::NotFinite { .. } => CliError::failed(error),
            PerplexityError::LogitsFile(error) => error.into(),
            _ => CliError::bad_input(error),
        }
    }
}

impl From<LogitsFileError> for CliError {
    fn from(error: LogitsFileError) -> CliError {
        match error {
            LogitsFileError::Write { ref path, ref source } => CliError::unwritable(path, source),
            _ => CliError::bad_input(error),
        }
    }
}

/// The chunks of a text, for a model.
///
/// Errors: a tokenizer that is unknown, a text that is too short.
pub fn chunks_of(
    text: &str,
    model: &Model,
    chunk_tokens: usize,
    max_chunks: Option<usize>,
) -> Result<Chunks, CliError> {
    // llama.cpp takes the last line's end off a text that it reads from a file.
    let text = text.strip_suffix('\n').unwrap_or(text);
    let tokenizer = prompt::tokenizer(model.metadata())?;
    let mut tokens: Vec<_> = tokenizer.leading_bos().into_iter().collect();
    tokens.extend(tokenizer.encode(text, ControlTokens::Literal)?);
    Ok(Chunks::new(tokens, chunk_tokens, max_chunks, tokenizer.leading_bos())?)
}

/// Scores the text and prints the result.
///
/// Errors: a text or file of logits that is unreadable or does not fit, what loading and running report.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    args.backend.check()?;
    let check_save =
        || args.save_logits.as_deref().map_or(Ok(()), |path| output_file::check_inputs(SAVE_LOGITS, path));
    check_save()?;
    let text = inputs::read_text(&args.file, "the text")?;
    if let Some(path) = &args.against {
        inputs::add(path, "the file of saved logits")?;
    }

    let started = Instant::now();
    let model = args.model.open()?;
    check_save()?;
    let chunk_tokens = args.backend.ctx_size.map_or(DEFAULT_CHUNK_TOKENS, NonZeroUsize::get);
    let chunks = chunks_of(&text, &model, chunk_tokens, args.chunks.map(NonZeroUsize::get))?;
    let vocab_size = model.config.vocab_size;
    let mut against = match &args.against {
        Some(path) => Some(LogitsReader::open(path, &chunks, vocab_size)?),
        None => None,
    };
    let mut save = match &args.save_logits {
        Some(path) => Some(LogitsWriter::create(path, &chunks, vocab_size)?),
        None => None,
    };

    let micro_batch = MICRO_BATCH_TOKENS.min(chunk_tokens);
    let options = CompileOptions {
        ctx_size: chunk_tokens,
        micro_batch: Some(micro_batch),
        max_logits_rows: micro_batch,
        ..args.backend.compile_options(&model)?
    };
    let compiled = engine::load(&model, &args.backend.backend, &options)?;
    let mut session = Session::new(compiled.executable)?;
    let info = session.info().clone();
    output::note(&format!("{} tokens in {} chunks of {chunk_tokens}", chunks.tokens().len(), chunks.len()));

    let bar = progress::bar(chunks.len() as u64, "{wide_bar} chunk {pos}/{len}  {msg}  {eta}");
    let companions = Companions { save: save.as_mut(), against: against.as_mut() };
    let scored = perplexity(&mut session, &chunks, companions, |so_far, divergence| {
        let mut message = format!("perplexity {:.4} ± {:.4}", so_far.perplexity, so_far.stderr);
        if let Some(divergence) = divergence {
            message.push_str(&format!("  KL {:.6}", divergence.kl().mean));
        }
        bar.set_message(message);
        bar.inc(1);
        Ok(())
    });
    bar.finish_and_clear();
    let (perplexity, divergence) = scored?;
    if let Some(writer) = save {
        partial_file::check_mapped()?;
        writer.finish()?;
    }
    let report = Report {
        schema_version: 1,
        perplexity,
        ctx_size: chunk_tokens,
        backend: info.backend,
        device: info.device,
        activations: info.activations.to_string(),
        kv_type: info.kv_type.to_string(),
        seconds: started.elapsed().as_secs_f64(),
        divergence,
    };
    if args.json {
        output::json(&report)?
    } else {
        output::text(&report.text())?
    }
    Ok(ExitCode::Ok)
}

impl Report {
    /// The result for people.
    fn text(&self) -> String {
        let p = &self.perplexity;
        let mut text = format!(
            "perplexity {:.4} ± {:.4} ({} chunks of {} tokens, {} tokens scored; {}, activations {}, KV cache {})\n",
            p.perplexity,
            p.stderr,
            p.chunks,
            self.ctx_size,
            p.scored_tokens,
            self.backend,
            self.activations,
            self.kv_type
        );
        if let Some(d) = &self.divergence {
            text.push_str(&format!(
                "base perplexity {:.4}; ln ratio {:+.6} ± {:.6}\n\
                 KL divergence {:.6} ± {:.6} (median {:.6}, 99 % {:.6}, max {:.6}); same top token {:.2} %\n",
                d.base_perplexity,
                d.ln_perplexity_ratio.mean,
                d.ln_perplexity_ratio.stderr,
                d.kl.mean,
                d.kl.stderr,
                d.kl_median,
                d.kl_p99,
                d.kl_max,
                d.same_top * 100.0
            ));
        }
        text
    }
}
