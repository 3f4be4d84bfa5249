//! `moe-run bench`: how fast prompts and generation run, beside the memory's limit.

mod machine;
mod measure;
mod profile;
mod report;

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use moe_run_backends::{
    Activations, DeviceKind, KvType, Weights, bandwidth, placed, registry, session::Session,
};

use self::{
    machine::Machine,
    measure::{Bench, Kind, Test},
    report::{ModelSummary, Report, Row, Settings},
};
use crate::{
    CliError, ExitCode,
    common::{self, BackendArgs, ModelArgs},
    engine, output,
    place_args::{PlaceArgs, check_no_experts},
};

/// Arguments of `bench`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Tokens of the prompt tests; 0 leaves them out
    #[arg(short = 'p', long, value_name = "N,…", value_delimiter = ',', default_value = "512", allow_negative_numbers = true, value_parser = common::whole_number::<usize>)]
    prompt_tokens: Vec<usize>,

    /// Tokens of the generation tests; 0 leaves them out
    #[arg(short = 'n', long, value_name = "N,…", value_delimiter = ',', default_value = "128", allow_negative_numbers = true, value_parser = common::whole_number::<usize>)]
    gen_tokens: Vec<usize>,

    /// Generate each token from the one before, as `run --temp 0` does, instead of random ones: a GPU then has its next
    /// step before the token of the last one is read
    #[arg(long)]
    greedy: bool,

    /// Tokens that the context holds before each test
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "0", allow_negative_numbers = true, value_parser = common::whole_number::<usize>)]
    depth: Vec<usize>,

    /// Timed runs of each test, after one that is not timed
    #[arg(short, long, value_name = "N", default_value = "5", allow_negative_numbers = true, value_parser = common::whole_number::<NonZeroUsize>)]
    repetitions: NonZeroUsize,

    /// Threads of the CPU backend; several numbers give several rows [default: the physical cores]
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', allow_negative_numbers = true, value_parser = common::whole_number::<NonZeroUsize>)]
    threads: Vec<NonZeroUsize>,

    /// Seed of the random tokens
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = common::whole_number::<u64>)]
    seed: u64,

    /// Add a table of the time that each operation takes
    #[arg(long)]
    profile: bool,

    /// Backend that runs the model; `auto` takes the fastest that can, and says which
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = common::backend_names(), help_heading = "Backend")]
    backend: String,

    /// Device of that backend, by number or name, as `moe-run devices` lists them; without --backend a list of devices that
    /// share the model, such as cuda:0,cuda:1,cpu
    #[arg(long, value_name = "DEVICE", help_heading = "Backend")]
    device: Option<String>,

    #[command(flatten)]
    place: PlaceArgs,

    /// Precision of the activations that quantized weights are multiplied with [default: the backend's fastest]
    #[arg(long, value_name = "TYPE", value_parser = common::activations(), help_heading = "Backend")]
    activations: Option<Activations>,

    /// How the KV cache is stored
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = common::kv_types(), help_heading = "Backend")]
    kv_type: KvType,

    /// Print one JSON object instead of a table
    #[arg(long, help_heading = "Output")]
    json: bool,

    /// Print CSV, a line a test, instead of a table
    #[arg(long, conflicts_with_all = ["json", "profile"], help_heading = "Output")]
    csv: bool,
}

/// Times the tests and prints the results.
///
/// Errors: tests that the model's context cannot hold, what loading and running report.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let place = args.place.request(&args.backend, args.device.as_deref())?;
    check_no_experts("bench", place.as_deref())?;
    let tests = args.tests()?;
    let mut header = None;
    let (mut results, mut profiles) = (Vec::new(), Vec::new());
    let context_tokens = tests.iter().map(Test::context_tokens).max().unwrap_or(1);
    let started = Instant::now();
    let model = args.model.open()?;
    let mut weights: Option<Arc<dyn Weights>> = None;
    for threads in args.thread_counts() {
        let options = args.backend_args(context_tokens, threads).compile_options(&model)?;
        let compiling = Instant::now();
        // The weights are loaded once for all numbers of threads.
        let mut session = match &weights {
            Some(weights) => engine::another_session(weights.as_ref(), &model, &options)?,
            None => {
                let compiled = engine::load(&model, &args.backend, &options)?;
                weights = Some(compiled.weights);
                Session::new(compiled.executable)?
            }
        };
        let load_seconds = if header.is_none() { started } else { compiling }.elapsed().as_secs_f64();
        let info = session.info().clone();
        let vocab_size = model.config.vocab_size;
        let device = device_kind(info.backend, &info.device)?;
        let mut bench = Bench::new(&mut session, device, info.kv_type, vocab_size, args.seed);
        for &test in &tests {
            output::note(&format!("{} with {} threads …", test.name(), info.threads));
            let runs = bench.run(test, args.repetitions.get())?;
            let seconds = runs.iter().map(Duration::as_secs_f64).collect();
            results.push(Row::new(test, info.threads, seconds, bench.cost(test), load_seconds));
            if args.profile {
                profiles.push(bench.profile(test)?);
            }
        }
        if let Some(bytes_per_second) = session.copy_bytes_per_second()? {
            for row in results.iter_mut().filter(|row| row.threads == info.threads) {
                row.set_read_bandwidth(bytes_per_second / 1e9);
            }
        }
        header.get_or_insert_with(|| {
            let settings = Settings {
                backend: info.backend,
                device: info.device,
                activations: info.activations.to_string(),
                kv_type: info.kv_type.to_string(),
                micro_batch: info.micro_batch,
                repetitions: args.repetitions.get(),
                seed: args.seed,
            };
            (settings, device)
        });
    }
    let Some((settings, device)) = header else {
        return Err(CliError::bad_input("--threads: no number given"));
    };
    let peak_memory_bytes = machine::peak_memory_bytes(); // before the read loop takes its buffer
    if device == DeviceKind::Cpu {
        set_read_bandwidth(&mut results);
    }
    let report = Report {
        schema_version: 1,
        version: env!("CARGO_PKG_VERSION"),
        commit: option_env!("MOE_RUN_COMMIT"),
        model: ModelSummary::of(&model),
        machine: Machine::here(),
        settings,
        results,
        profiles,
        peak_memory_bytes,
    };
    match (args.json, args.csv) {
        (true, _) => output::json(&report)?,
        (_, true) => output::text(&report.csv())?,
        _ => output::text(&report.markdown())?,
    }
    Ok(ExitCode::Ok)
}

/// Measures what a read loop gets with each row's number of threads.
fn set_read_bandwidth(rows: &mut [Row]) {
    let mut measured: Option<(usize, f64)> = None;
    for row in rows {
        let Some(threads) = NonZeroUsize::new(row.threads) else { continue };
        // Rows of one number of threads follow each other.
        let bandwidth = match measured {
            Some((of, bandwidth)) if of == row.threads => bandwidth,
            _ => bandwidth::read_bytes_per_second(threads) / 1e9,
        };
        measured = Some((row.threads, bandwidth));
        row.set_read_bandwidth(bandwidth);
    }
}

impl Args {
    /// The tests, prompts before generations, by depth.
    fn tests(&self) -> Result<Vec<Test>, CliError> {
        let mut tests = Vec::new();
        for &depth in &self.depth {
            let of = |kind, counts: &[usize]| -> Vec<Test> {
                let counts = counts.iter().filter(|n| **n > 0);
                counts.map(|&tokens| Test { kind, tokens, depth }).collect()
            };
            tests.extend(of(Kind::Prompt, &self.prompt_tokens));
            tests.extend(of(if self.greedy { Kind::Greedy } else { Kind::Generation }, &self.gen_tokens));
        }
        if tests.is_empty() {
            return Err(CliError::bad_input(
                "nothing to time: -p and -n are both 0; give tokens to one of them",
            ));
        }
        Ok(tests)
    }

    /// The numbers of threads; `None` leaves the number to the backend.
    fn thread_counts(&self) -> Vec<Option<NonZeroUsize>> {
        if self.threads.is_empty() { vec![None] } else { self.threads.iter().copied().map(Some).collect() }
    }

    fn backend_args(&self, context_tokens: usize, threads: Option<NonZeroUsize>) -> BackendArgs {
        BackendArgs {
            backend: self.backend.clone(),
            device: self.device.clone(),
            place: self.place.clone(),
            activations: self.activations,
            kv_type: self.kv_type,
            ctx_size: NonZeroUsize::new(context_tokens),
            threads,
        }
    }
}

/// The sort of the device that an executable runs on. One that its backend does not list is the CUDA kernels' host harness, which
/// runs where no driver is.
fn device_kind(backend: &str, device: &str) -> Result<DeviceKind, CliError> {
    // Several devices of different backends are none of them.
    if backend == placed::NAME {
        return Ok(DeviceKind::Software);
    }
    let devices = registry::by_name(backend)?.devices().unwrap_or_default();
    let found = devices.iter().find(|d| d.name == device);
    Ok(found.map_or(DeviceKind::Software, |d| d.kind))
}
