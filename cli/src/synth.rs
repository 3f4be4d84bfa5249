//! `moe-run synth`: a GGUF file of a real model's shapes, formats and metadata, with seeded random weights.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    num::NonZeroUsize,
    ops::ControlFlow,
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use clap::builder::PossibleValuesParser;
use moe_run_backends::partial_file::{self, PartialFile};
use moe_run_graph::{
    gguf::{GgufFile, writer::WriteError},
    quant::{Format, UnknownFormat},
    shown::shown_path,
    synth::{PRESETS, Preset, Synth, SynthError, SynthOptions},
};
use serde::Serialize;

use crate::{CliError, ExitCode, common, interrupt::Generation, mapped, output, output_file, progress};

/// More filling threads than this are of no use: the disk is slower.
const THREADS_MAX: usize = 8;

/// The option of the output, for errors.
const OUTPUT: &str = "--output";

/// Arguments of `synth`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Model whose shapes, formats and metadata to take
    #[arg(long, value_parser = PossibleValuesParser::new(PRESETS.iter().map(|preset| preset.name)))]
    pub preset: String,

    /// How many of its layers [default: all]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = common::whole_number::<usize>)]
    pub layers: Option<usize>,

    /// One format for every matrix that would be quantized and whose rows are whole blocks of it, in any case ("iq3_s")
    /// [default: as files of the model mostly have it]
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub format: Option<Format>,

    /// File to write, in the place of one that is there
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,

    /// Seed of the random weights: the same seed gives the same file
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = common::whole_number::<u64>)]
    pub seed: u64,

    /// Take tokenizer and chat template from this GGUF file; without it the model runs from token ids only
    #[arg(long, value_name = "GGUF")]
    pub vocab_from: Option<PathBuf>,

    /// Write a sparse file of full size without weights: for graphs, plans and `inspect`
    #[arg(long)]
    pub dry_run: bool,

    /// Print what was written as JSON
    #[arg(long)]
    pub json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    schema_version: u32,
    file: String,
    file_bytes: usize,
    tensors: usize,
    preset: &'a str,
    num_hidden_layers: usize,
    seed: u64,
    dry_run: bool,
    seconds: f64,
}

/// A format by its name.
fn format(name: &str) -> Result<Format, UnknownFormat> {
    Format::parse(name)
}

/// Writes the file.
///
/// Errors: arguments that the preset cannot meet, a tokenizer that does not fit, a file that cannot be written, Ctrl-C.
/// None leaves a half-written file.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let started = Instant::now();
    let Some(preset) = Preset::by_name(&args.preset) else {
        return Err(CliError::bad_input(format!("unknown preset {:?}", args.preset)));
    };
    output_file::check_inputs(OUTPUT, &args.output)?;
    let open = |path: &Path| mapped::open(path, "the vocabulary's file");
    let vocabulary = args.vocab_from.as_deref().map(open).transpose()?;
    output_file::check_inputs(OUTPUT, &args.output)?;
    let options = SynthOptions {
        preset,
        num_hidden_layers: args.layers,
        seed: args.seed,
        vocabulary: vocabulary.as_ref().map(GgufFile::metadata),
        format: args.format,
    };
    let synth = Synth::new(&options).map_err(CliError::bad_input)?;
    let (file_bytes, tensors) = (synth.layout().file_bytes(), synth.layout().tensors().len());

    let unwritable = |error: &io::Error| unwritable(&args.output, file_bytes, error);
    let generation = Generation::begin();
    let partial = PartialFile::create(&args.output).map_err(|e| unwritable(&e))?;
    let file = partial.file().map_err(|e| unwritable(&e))?;
    if args.dry_run {
        write_sparse(&synth, file).map_err(|e| unwritable(&e))?;
    } else {
        write(synth, file, &args.output, &generation)?;
    }
    partial_file::check_mapped()?;
    partial.finish().map_err(|e| unwritable(&e))?;

    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        output::json(&Report {
            schema_version: 1,
            file: args.output.display().to_string(),
            file_bytes,
            tensors,
            preset: preset.name,
            num_hidden_layers: args.layers.unwrap_or(preset.num_hidden_layers),
            seed: args.seed,
            dry_run: args.dry_run,
            seconds,
        })?;
    } else {
        let (gb, file) = (file_bytes as f64 / 1e9, shown_path(&args.output));
        let kind = if args.dry_run { ", sparse, without weights" } else { "" };
        output::note(&format!("{file}: {tensors} tensors, {gb:.2} GB{kind}, in {seconds:.1} s"));
    }
    Ok(ExitCode::Ok)
}

/// Writes what a graph needs to know, and leaves the weights out.
fn write_sparse(synth: &Synth, mut file: &File) -> io::Result<()> {
    file.write_all(synth.layout().header())?;
    file.set_len(synth.layout().file_bytes() as u64)?;
    for (offset_bytes, bytes) in synth.factors() {
        file.seek(SeekFrom::Start(offset_bytes as u64))?;
        file.write_all(&bytes)?;
    }
    Ok(())
}

/// Streams the weights, with a progress bar where standard error is a terminal, until done or Ctrl-C.
fn write(synth: Synth, file: &File, path: &Path, generation: &Generation) -> Result<(), CliError> {
    let file_bytes = synth.layout().file_bytes();
    let bar = progress::bar(file_bytes as u64, "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(THREADS_MAX);
    let threads = NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN);
    let written = synth.write(file, threads, |bytes| {
        bar.set_position(bytes);
        if generation.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    match written {
        Ok(_) => Ok(()),
        Err(SynthError::Stopped) => Err(CliError::Interrupted),
        Err(SynthError::Write(WriteError::Io(error))) => Err(unwritable(path, file_bytes, &error)),
        Err(error) => Err(CliError::failed(error)),
    }
}

/// The error for an output file that cannot be written: with a full disk, what it would need.
fn unwritable(path: &Path, file_bytes: usize, error: &io::Error) -> CliError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            let gb = file_bytes as f64 / 1e9;
            CliError::failed(format!(
                "{}: cannot write: {error}; it needs {gb:.2} GB: free some space, or take fewer --layers",
                path.display()
            ))
        }
        _ => CliError::unwritable(path, error),
    }
}
