//! `moe-run quantize`: a model's file in other formats.
//!
//! The file is written from front to back into `OUT.partial`, with a journal beside it: a job that was ended is gone on with
//! by the same command, and gives the same bytes. What cannot be finished, for a full disk or a row that a format cannot hold,
//! leaves nothing.

mod budget;
mod table;

use std::{
    fs, io,
    num::NonZeroUsize,
    ops::ControlFlow,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use moe_run_backends::partial_file;
use moe_run_graph::{
    Model,
    gguf::GgufFile,
    quantize::{
        Base, Begun, Choice, Entry, Importance, ImportanceError, Job, JobError, QuantizePlan, Recipe,
        Resumable, ResumeError, Why,
    },
    shown::{shown, shown_path},
};
use serde::Serialize;

use crate::{
    CliError, ExitCode,
    common::{self, ModelArgs},
    inputs,
    interrupt::Generation,
    mapped, output, output_file, progress,
};

/// The option of the output, for errors.
const OUTPUT: &str = "--output";
/// What is written before the disk is asked whether it has it.
const NOTE_BYTES: u64 = 32 << 20;
/// The same in time.
const NOTE_TIME: Duration = Duration::from_millis(500);

/// Arguments of `quantize`.
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("choice").required(true).multiple(true).args(["format", "recipe", "target_bits"]))]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// File to write, in the place of one that is there
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run")]
    output: Option<PathBuf>,

    /// A format for every matrix (Q4_K, Q8_0, F16 …), or a mixture that files are known by (Q4_K_M, Q3_K_S …)
    #[arg(long, value_name = "NAME", value_parser = Base::parse, conflicts_with = "target_bits")]
    format: Option<Base>,

    /// Formats by name, before --format: PATTERN=FORMAT,… with * and ?, or a file of such lines; the first that matches
    /// holds, FORMAT may be `keep`
    #[arg(long, value_name = "RULES")]
    recipe: Option<String>,

    /// How much each column matters, from `moe-run importance` or llama-imatrix (GGUF)
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,

    /// Choose each matrix's format by what it costs on the text --file, so many bits a weight in all
    #[arg(long, value_name = "BITS", requires = "file", allow_negative_numbers = true)]
    target_bits: Option<f64>,

    /// The text for --target-bits, in UTF-8
    #[arg(short, long, value_name = "TEXT", requires = "target_bits")]
    file: Option<PathBuf>,

    /// Measure on so many chunks of the text, for --target-bits
    #[arg(long, value_name = "N", default_value = "4", requires = "target_bits", allow_negative_numbers = true, value_parser = common::whole_number::<NonZeroUsize>)]
    chunks: NonZeroUsize,

    /// Tokens of a chunk, for --target-bits
    #[arg(short, long, value_name = "TOKENS", default_value = "256", requires = "target_bits", allow_negative_numbers = true, value_parser = common::whole_number::<NonZeroUsize>)]
    ctx_size: NonZeroUsize,

    /// Threads; any number gives the same file [default: the processors]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = common::whole_number::<NonZeroUsize>)]
    threads: Option<NonZeroUsize>,

    /// Print what would become of each tensor, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Print the table and what was written as one JSON object
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    schema_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    file_bytes: usize,
    bits_per_weight: f64,
    tensors: &'a [Entry],
    /// Matrices that become smaller and of which the importance file says nothing.
    without_importance: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a budget::Target>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed_from_bytes: Option<u64>,
    dry_run: bool,
    seconds: f64,
}

impl From<ImportanceError> for CliError {
    fn from(error: ImportanceError) -> CliError {
        CliError::bad_input(error)
    }
}

/// Writes the file, or prints the table.
///
/// Errors: arguments, recipe or importance that do not fit the model; what the formats cannot hold; a file that cannot be
/// written; Ctrl-C, after which the same command goes on.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let started = Instant::now();
    let check = || args.output.as_deref().map_or(Ok(()), check_output);
    check()?;
    let recipe = args.recipe.as_deref().map(read_recipe).transpose()?;
    let model = args.model.open()?;
    let importance = args.importance.as_deref().map(read_importance).transpose()?;
    let text = args.file.as_deref().map(|path| inputs::read_text(path, "the text")).transpose()?;
    check()?;
    let threads = args.threads.or_else(|| thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
    let mut choice = Choice { base: args.format.unwrap_or_default(), recipe: recipe.as_ref(), chosen: None };
    let mut plan = QuantizePlan::new(&model, &choice, importance.as_ref())?;
    if let Some(importance) = &importance {
        importance.check(plan.matrices())?;
    }
    let target = match (args.target_bits, &text) {
        (Some(bits), Some(text)) => {
            let wanted = budget::Wanted {
                bits,
                chunks: args.chunks.get(),
                chunk_tokens: args.ctx_size.get(),
                threads,
            };
            Some(budget::choose(&model, &plan, importance.as_ref(), text, &wanted)?)
        }
        _ => None,
    };
    if let Some(target) = &target {
        choice.chosen = Some(&target.formats);
        plan = QuantizePlan::new(&model, &choice, importance.as_ref())?;
    }
    let without_importance = without_importance(&plan, importance.as_ref());
    if !without_importance.is_empty() {
        output::note(&format!(
            "the importance file says nothing of {}: their columns all count alike",
            shown(without_importance.join(", "))
        ));
    }

    let resumed_from_bytes = match args.output.as_deref().filter(|_| !args.dry_run) {
        Some(out) => write(&model, &plan, importance.as_ref(), out, threads)?,
        None => None,
    };
    let written = args.output.as_deref().filter(|_| !args.dry_run);
    let report = Report {
        schema_version: 1,
        file: written.map(|path| path.display().to_string()),
        file_bytes: plan.layout.file_bytes(),
        bits_per_weight: plan.bits_per_weight(),
        tensors: &plan.entries,
        without_importance,
        target: target.as_ref(),
        resumed_from_bytes,
        dry_run: args.dry_run,
        seconds: started.elapsed().as_secs_f64(),
    };
    if args.json {
        output::json(&report)?;
    } else if args.dry_run || target.is_some() {
        output::text(&table::text(&plan, target.as_ref()))?;
    }
    if let Some(path) = written {
        output::note(&format!(
            "{}: {} tensors, {:.2} GB, {:.3} bits a weight, in {:.1} s",
            shown_path(path),
            plan.entries.len(),
            report.file_bytes as f64 / 1e9,
            report.bits_per_weight,
            report.seconds
        ));
    }
    Ok(ExitCode::Ok)
}

/// What can be said of the output before any work.
fn check_output(path: &Path) -> Result<(), CliError> {
    output_file::check(OUTPUT, Some(path))?;
    for beside in Resumable::names(path) {
        output_file::check(OUTPUT, Some(&beside))?;
    }
    match fs::metadata(path) {
        Ok(there) if !there.is_file() => Err(CliError::bad_input(format!(
            "{OUTPUT} {}: is no regular file; a model is written to one, so that it can be gone on with",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Rules, or the file that holds them.
fn read_recipe(rules: &str) -> Result<Recipe, CliError> {
    let text = match rules.contains('=') {
        true => rules.to_owned(),
        false => inputs::read_text(Path::new(rules), "the recipe")?,
    };
    Recipe::parse(&text).map_err(CliError::bad_input)
}

fn read_importance(path: &Path) -> Result<Importance, CliError> {
    Ok(Importance::read(&mapped::open(path, "the importance file")?)?)
}

/// Matrices that become smaller without anything being known of their columns.
fn without_importance<'a>(plan: &'a QuantizePlan, importance: Option<&Importance>) -> Vec<&'a str> {
    let Some(importance) = importance else { return Vec::new() };
    let changed = plan.matrices().filter(|e| e.to != e.from && e.to.is_quantized() && e.why != Why::Kept);
    changed.filter(|e| importance.get(&e.name).is_none()).map(|e| e.name.as_str()).collect()
}

/// What is known of the input's files beside their headers: another input is another job.
fn identity(file: &GgufFile) -> String {
    let parts = file.parts().iter().map(|part| {
        let metadata = fs::metadata(part.file());
        let modified =
            metadata.and_then(|m| m.modified()).ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        let nanoseconds = modified.map_or(0, |t| t.as_nanos());
        format!("{} {} {nanoseconds};", part.file(), part.len_bytes())
    });
    parts.collect()
}

/// Writes the file; says from where it was gone on with.
fn write(
    model: &Model,
    plan: &QuantizePlan,
    importance: Option<&Importance>,
    out: &Path,
    threads: NonZeroUsize,
) -> Result<Option<u64>, CliError> {
    // Of a link the file that it points to is written.
    let out = &fs::canonicalize(out).unwrap_or_else(|_| out.to_owned());
    let job = Job { file: &model.file, plan, importance };
    let (file, begun) =
        Resumable::open(out, &job.fingerprint(&identity(&model.file))).map_err(resume_error)?;
    let partial = &Resumable::names(out)[0];
    let done_bytes = match begun {
        Begun::New => 0,
        Begun::Anew => {
            output::note(&format!("{}: was of another job; begun anew", shown_path(partial)));
            0
        }
        Begun::Resumed { done_bytes } => {
            output::note(&format!("{}: going on behind {done_bytes} bytes", shown_path(partial)));
            done_bytes
        }
    };
    let generation = Generation::begin();
    let file_bytes = plan.layout.file_bytes() as u64;
    let bar = progress::bar(file_bytes, "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let (mut noted, mut noted_at) = (done_bytes, Instant::now());
    let written = job.write(file.file(), done_bytes, threads, |bytes, _| {
        bar.set_position(bytes);
        if bytes - noted >= NOTE_BYTES || noted_at.elapsed() >= NOTE_TIME {
            file.note(bytes)?;
            (noted, noted_at) = (bytes, Instant::now());
        }
        Ok(if generation.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    bar.finish_and_clear();
    let unwritable = |error: &io::Error| unwritable(out, file_bytes, error);
    let written = written.map_err(|error| match error {
        JobError::Io(error) => unwritable(&error),
        JobError::Stopped => CliError::Interrupted,
        JobError::Encode { .. } | JobError::Missing { .. } => CliError::bad_input(error),
        other => CliError::failed(other),
    });
    let unchanged = partial_file::check_mapped().map_err(CliError::from);
    match written.map(drop).and(unchanged) {
        Ok(()) => file.finish().map_err(|e| unwritable(&e))?,
        Err(CliError::Interrupted) => {
            output::say(&format!("{}: the same command goes on from here", shown_path(partial)));
            return Err(CliError::Interrupted);
        }
        Err(error) => {
            // There is nobody left to tell where this fails too.
            let _ = file.discard();
            return Err(error);
        }
    }
    Ok(match begun {
        Begun::Resumed { done_bytes } => Some(done_bytes),
        Begun::New | Begun::Anew => None,
    })
}

fn resume_error(error: ResumeError) -> CliError {
    match error {
        ResumeError::Io { ref path, ref source } => CliError::unwritable(path, source),
        other => CliError::bad_input(other),
    }
}

/// The error for an output file that cannot be written: with a full disk, what it would need.
fn unwritable(path: &Path, file_bytes: u64, error: &io::Error) -> CliError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            let gb = file_bytes as f64 / 1e9;
            CliError::failed(format!(
                "{}: cannot write: {error}; it needs {gb:.3} GB: free some space, or take fewer bits",
                path.display()
            ))
        }
        _ => CliError::unwritable(path, error),
    }
}
