//! `moe-run importance`: how much each column of each matrix matters on a text, for `moe-run quantize --importance`.

use std::{num::NonZeroUsize, path::PathBuf, time::Instant};

use moe_run_backends::{
    CompileOptions, partial_file,
    session::{LogitsRows, Session},
};
use moe_run_graph::{quantize::importance_file, shown::shown_path};
use moe_run_inspect::importance::ImportanceSink;
use serde::Serialize;

use crate::{
    CliError, ExitCode,
    common::{self, BackendArgs, ModelArgs},
    engine, inputs, output,
    output_file::{self, OutputFile},
    perplexity::{DEFAULT_CHUNK_TOKENS, MICRO_BATCH_TOKENS, chunks_of},
    progress,
};

/// The option of the output, for errors.
const OUTPUT: &str = "--output";

/// Arguments of `importance`.
#[derive(clap::Args, Debug)]
#[command(mut_arg("ctx_size", |arg| arg.help(format!("Tokens of a chunk [default: {DEFAULT_CHUNK_TOKENS}]"))))]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The text, in UTF-8: such as the model is to be good at
    #[arg(short, long, value_name = "TEXT")]
    file: PathBuf,

    /// File to write, in the place of one that is there: GGUF, as llama-imatrix writes it
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Evaluate so many chunks of --ctx-size tokens at most [default: all]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = common::whole_number::<NonZeroUsize>)]
    chunks: Option<NonZeroUsize>,

    /// Print what was found as one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    backend: BackendArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    schema_version: u32,
    file: String,
    tensors: usize,
    tokens: usize,
    chunks: usize,
    /// Experts of a tensor that no token chose, where there are any.
    unseen_experts: Vec<Unseen>,
    /// Tensors whose input no tap shows.
    unknown: Vec<String>,
    backend: &'static str,
    seconds: f64,
}

#[derive(Serialize)]
struct Unseen {
    tensor: String,
    unseen: usize,
    of: usize,
}

/// Evaluates the text and writes what products read.
///
/// Errors: a text that is unreadable or too short, what loading and running report, a file that cannot be written.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    args.backend.check()?;
    output_file::check(OUTPUT, Some(&args.output))?;
    let text = inputs::read_text(&args.file, "the text")?;
    let started = Instant::now();
    let model = args.model.open()?;
    output_file::check(OUTPUT, Some(&args.output))?;
    let chunk_tokens = args.backend.ctx_size.map_or(DEFAULT_CHUNK_TOKENS, NonZeroUsize::get);
    let chunks = chunks_of(&text, &model, chunk_tokens, args.chunks.map(NonZeroUsize::get))?;

    let mut sink = ImportanceSink::new(&model);
    let micro_batch = MICRO_BATCH_TOKENS.min(chunk_tokens);
    let options = CompileOptions {
        ctx_size: chunk_tokens,
        micro_batch: Some(micro_batch),
        max_logits_rows: micro_batch,
        taps: sink.taps(),
        ..args.backend.compile_options(&model)?
    };
    let compiled = engine::load(&model, &args.backend.backend, &options)?;
    let mut session = Session::new(compiled.executable)?;
    let backend = session.info().backend;
    output::note(&format!("{} tokens in {} chunks of {chunk_tokens}", chunks.tokens().len(), chunks.len()));
    let bar = progress::bar(chunks.len() as u64, "{wide_bar} chunk {pos}/{len}  {eta}");
    for chunk in 0..chunks.len() {
        session.truncate(0)?;
        session.feed(&chunks.evaluated(chunk), LogitsRows::All, Some(&mut sink), |_, _| Ok(()))?;
        bar.inc(1);
    }
    bar.finish_and_clear();

    let unknown: Vec<String> = sink.unknown().into_iter().map(str::to_owned).collect();
    let tensors = sink.finish();
    let dataset = args.file.display().to_string();
    let bytes = importance_file(&tensors, &dataset, chunks.len() as u32, chunk_tokens as u32)
        .map_err(CliError::failed)?;
    partial_file::check_mapped()?;
    let file = OutputFile::create(OUTPUT, &args.output)?;
    file.write(&bytes)?;
    file.finish()?;

    let unseen_experts: Vec<Unseen> = tensors
        .iter()
        .filter(|(_, tensor)| tensor.unseen() > 0)
        .map(|(name, t)| Unseen { tensor: name.clone(), unseen: t.unseen(), of: t.counts.len() })
        .collect();
    for unseen in &unseen_experts {
        output::warning(&format!(
            "{}: {} of {} experts were chosen for no token: their columns all count alike; a longer text helps",
            unseen.tensor, unseen.unseen, unseen.of
        ));
    }
    for tensor in &unknown {
        output::warning(&format!(
            "{tensor}: no tap of this backend shows what it is multiplied by; left out"
        ));
    }
    let report = Report {
        schema_version: 1,
        file: args.output.display().to_string(),
        tensors: tensors.len(),
        tokens: chunks.tokens().len(),
        chunks: chunks.len(),
        unseen_experts,
        unknown,
        backend,
        seconds: started.elapsed().as_secs_f64(),
    };
    if args.json {
        output::json(&report)?;
    } else {
        output::note(&format!(
            "{}: {} tensors from {} tokens, in {:.1} s",
            shown_path(&args.output),
            report.tensors,
            report.tokens,
            report.seconds
        ));
    }
    Ok(ExitCode::Ok)
}
