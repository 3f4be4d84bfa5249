//! `moe-run graph`: the op graph, its launches and its plan, as text, JSON, DOT or an HTML page; with measured times.
//!
//! No weights are read unless `--profile` runs the model: a file whose tensors are all zero, or a sparse one, will do.

use std::{
    num::NonZeroUsize,
    ops::Range,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use moe_run_backends::{
    Backend, DeviceKind, auto, bandwidth,
    options::CompileOptions,
    placement, registry,
    session::{LogitsRows, Session},
};
use moe_run_graph::{
    Model,
    dump::{self, BackendView, Dump, DumpInput, KernelInfo, MeasuredTimes, Subject},
    ids::TokenId,
    ir::StepSizes,
    passes::{Launch, Plan, PlanOptions, TapSelection, none_alone, plan},
    quant::ActBlock,
    synth::Random,
};
use moe_run_inspect::{
    profile::Profile,
    taps::select::{SelectError, StageList, parse_layers},
};

#[cfg(feature = "cuda")]
use crate::graph_times;
use crate::{
    CliError, ExitCode,
    announce::choice_text,
    common::{self, BackendArgs, ModelArgs},
    engine, output,
    output_file::{self, OutputFile},
    place_args::check_no_experts,
};

/// The option of the output, for errors.
const OUTPUT: &str = "--output";

/// Tokens in the cache unless asked otherwise.
const DEFAULT_DEPTH: usize = 512;

/// Arguments of `graph`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Which model
    #[command(flatten)]
    pub model: ModelArgs,

    /// Whose launches
    #[command(flatten)]
    pub backend: BackendArgs,

    /// How far along the pipeline [default: lowered; plan with --profile, --show-shader or --taps]
    #[arg(long, value_enum)]
    pub level: Option<LevelName>,

    /// Form of the dump
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,

    /// Only these layers, and the whole model's nodes; END is not included
    #[arg(long, value_name = "START..END")]
    pub layers: Option<String>,

    /// Taps that the plan keeps: names of stages separated by commas, or all; the lowered graph has every one
    #[arg(long, value_name = "STAGES")]
    pub taps: Option<String>,

    /// Tokens of the step that costs are stated for: 1 is decoding
    #[arg(long, value_name = "TOKENS", default_value = "1", allow_negative_numbers = true, value_parser = common::whole_number::<NonZeroUsize>)]
    pub step_tokens: NonZeroUsize,

    /// Tokens in the cache before that step [default: 512, or what the context holds]
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true, value_parser = common::whole_number::<usize>)]
    pub depth: Option<usize>,

    /// Memory's bandwidth in 10⁹ bytes a second, for the times that the bytes alone take [default with --profile on a
    /// processor: measured]
    #[arg(long, value_name = "GB/S", allow_negative_numbers = true)]
    pub bandwidth: Option<f64>,

    /// Run the step and set each launch's time beside what the bytes alone take
    #[arg(long)]
    pub profile: bool,

    /// Timed steps of --profile, after one that is not timed
    #[arg(short, long, value_name = "N", default_value = "10", requires = "profile", allow_negative_numbers = true, value_parser = common::whole_number::<NonZeroUsize>)]
    pub repetitions: NonZeroUsize,

    /// Print the source of a launch's kernel instead of the graph: its number or its kind, as the plan names it
    #[arg(long, value_name = "LAUNCH", conflicts_with_all = ["profile", "format"])]
    pub show_shader: Option<String>,

    /// Predict what each launch of a decode step takes on a GPU that is not at hand: h200, h100, 5090, 4090 or 3090
    #[arg(long = "for", value_name = "CHIP", conflicts_with_all = ["profile", "format", "show_shader", "bandwidth"])]
    pub chip: Option<String>,

    /// File to write, in the place of one that is there; standard output where absent
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `--level`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum LevelName {
    /// The op graph as lowering made it
    Lowered,
    /// After the passes: each node with its launch
    Optimized,
    /// Launches in order: kernels, buffers, bytes, time
    Plan,
}

/// `--format`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// A table; repeated layers once
    Text,
    /// One object, its schema in docs/graph-json.md
    Json,
    /// For Graphviz; repeated layers once
    Dot,
    /// One page that needs no network
    Html,
}

/// The arguments, checked as far as they can be without a model.
struct Request {
    level: LevelName,
    layers: Option<Range<usize>>,
    taps: Option<StageList>,
    bandwidth_bytes_per_s: Option<f64>,
}

impl Request {
    fn new(args: &Args) -> Result<Request, CliError> {
        let planned =
            args.profile || args.show_shader.is_some() || args.taps.is_some() || args.chip.is_some();
        let level = args.level.unwrap_or(if planned { LevelName::Plan } else { LevelName::Lowered });
        if level == LevelName::Lowered && planned {
            return Err(CliError::bad_input(
                "--profile, --show-shader, --taps and --for are about a plan: the lowered graph has no launches; give --level plan",
            ));
        }
        args.backend.check()?;
        let names_one = args.backend.backend != "auto";
        if let (Some(device), false) = (args.backend.device.as_ref().filter(|_| names_one), args.profile) {
            output::note(&format!(
                "note: --device {device} is not looked at: a plan is made without a device; only --profile opens one"
            ));
        }
        if let Some(gb) = args.bandwidth
            && !(gb.is_finite() && gb > 0.0)
        {
            return Err(CliError::bad_input(format!("--bandwidth {gb}: wanted a number above 0, in GB/s")));
        }
        Ok(Request {
            level,
            layers: args.layers.as_deref().map(parse_layers).transpose()?,
            taps: args.taps.as_deref().map(StageList::parse).transpose()?,
            bandwidth_bytes_per_s: args.bandwidth.map(|gb| gb * 1e9),
        })
    }
}

/// A plan with what is known about it.
struct Planned {
    plan: Plan,
    backend: Box<dyn Backend>,
    /// Under which it is compiled.
    options: CompileOptions,
    view: BackendView,
    measured: Option<MeasuredTimes>,
    bandwidth_bytes_per_s: Option<f64>,
}

/// Writes the dump.
///
/// Errors: arguments that the model cannot meet, what loading and running report, a file that cannot be written.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let request = Request::new(&args)?;
    output_file::check_or_stdout(OUTPUT, args.output.as_deref())?;
    let model = args.model.open()?;
    let file = OutputFile::create(OUTPUT, args.output.as_deref().unwrap_or(Path::new("-")))?;
    let num_layers = model.graph.num_layers;
    if let Some(range) = &request.layers
        && range.end > num_layers
    {
        return Err(SelectError::Layers { range: range.clone(), num_layers }.into());
    }
    let tokens = args.step_tokens.get();
    let ctx_size = args.backend.ctx_size(&model);
    let depth = args.depth.unwrap_or(DEFAULT_DEPTH.min(ctx_size.saturating_sub(tokens)));
    let cached = depth.saturating_add(tokens);
    if cached > ctx_size {
        return Err(CliError::bad_input(format!(
            "--depth {depth} and --step-tokens {tokens} do not fit in a context of {ctx_size} tokens; raise --ctx-size",
        )));
    }
    let sizes = StepSizes { tokens, logits_rows: 1, cached };
    let planned = match request.level {
        LevelName::Lowered => None,
        LevelName::Optimized | LevelName::Plan => {
            let all = 0..num_layers;
            let taps = match &request.taps {
                None => TapSelection::None,
                Some(list) => list.select(&model.graph, request.layers.as_ref().unwrap_or(&all))?,
            };
            Some(if args.profile {
                profile(&args, &model, taps, depth)?
            } else {
                planned(&args, &model, &taps)?
            })
        }
    };
    if let (Some(chip), Some(planned)) = (&args.chip, &planned) {
        file.write(predicted(planned, chip, sizes)?.as_bytes())?;
        file.finish()?;
        return Ok(ExitCode::Ok);
    }
    if let (Some(wanted), Some(planned)) = (&args.show_shader, &planned) {
        file.write(shader(planned, wanted)?.as_bytes())?;
        file.finish()?;
        return Ok(ExitCode::Ok);
    }
    let dump = dumped(&args, &request, &model, planned.as_ref(), sizes);
    let text = match args.format {
        Format::Text => dump::text(&dump),
        Format::Json => dump::json(&dump).map_err(CliError::failed)? + "\n",
        Format::Dot => dump::dot(&dump),
        Format::Html => dump::html(&dump).map_err(CliError::failed)?,
    };
    file.write(text.as_bytes())?;
    file.finish()?;
    Ok(ExitCode::Ok)
}

fn dumped(
    args: &Args,
    request: &Request,
    model: &Model,
    planned: Option<&Planned>,
    sizes: StepSizes,
) -> Dump {
    let kernel = |launch: &Launch| -> Option<KernelInfo> {
        let planned = planned?;
        planned.backend.kernel(&planned.plan, launch, &planned.options)
    };
    let subject = match (request.level, planned) {
        (LevelName::Plan, Some(p)) => Subject::Plan(&p.plan),
        (_, Some(p)) => Subject::Optimized(&p.plan),
        (_, None) => Subject::Lowered,
    };
    dump::dump(&DumpInput {
        config: &model.config,
        lowered: &model.graph,
        subject,
        backend: planned.map(|p| &p.view),
        kernel: &kernel,
        sizes,
        kv_type: args.backend.kv_type.name(),
        kv_row_bytes: &|elems| args.backend.kv_type.row_bytes(elems),
        bandwidth_bytes_per_s: request
            .bandwidth_bytes_per_s
            .or_else(|| planned.and_then(|p| p.bandwidth_bytes_per_s)),
        layers: request.layers.as_ref(),
        measured: planned.and_then(|p| p.measured.as_ref()),
    })
}

/// The times of a decode step's launches on a chip.
#[cfg(feature = "cuda")]
fn predicted(planned: &Planned, chip: &str, sizes: StepSizes) -> Result<String, CliError> {
    let chip = graph_times::chip(chip)?;
    if planned.view.name != moe_run_backends::cuda::NAME || sizes.tokens != 1 {
        return Err(CliError::bad_input(format!(
            "--for {}: what is predicted is a step of one token on backend cuda; found --step-tokens {} on {}; give --backend cuda",
            chip.key, sizes.tokens, planned.view.name
        )));
    }
    graph_times::text(&planned.plan, &planned.options, chip, sizes)
}

#[cfg(not(feature = "cuda"))]
fn predicted(_: &Planned, chip: &str, _: StepSizes) -> Result<String, CliError> {
    Err(CliError::unsupported(format!(
        "--for {chip}: this build lacks backend cuda, whose launches are predicted"
    )))
}

/// The plan that the backend would run, without opening a device.
fn planned(args: &Args, model: &Model, taps: &TapSelection) -> Result<Planned, CliError> {
    let options = args.backend.compile_options(model)?;
    let max_sizes =
        StepSizes { tokens: args.step_tokens.get(), logits_rows: 1, cached: args.backend.ctx_size(model) };
    check_no_experts("graph", options.place.as_deref())?;
    if let Some(request) = &options.place {
        let placed = placement::place(&model.graph, request, &options)?;
        let plan = placed.plan(&model.graph, taps, max_sizes, &options)?;
        let view = view(&placed, &options, None);
        let backend = Box::new(placed);
        return Ok(Planned { plan, backend, options, view, measured: None, bandwidth_bytes_per_s: None });
    }
    let (backend, chosen) = auto::backend(&model.graph, &args.backend.backend, &options)?;
    if let Some(chosen) = chosen {
        output::note(&choice_text(&chosen, ": the plan is made for it"));
    }
    let tokens = args.step_tokens.get();
    let patterns = backend.patterns(tokens, &options);
    let plan = plan(&model.graph, &PlanOptions { taps, patterns: &patterns, alone: &none_alone, max_sizes })
        .map_err(CliError::failed)?;
    let view = view(backend.as_ref(), &options, None);
    Ok(Planned { plan, backend, options, view, measured: None, bandwidth_bytes_per_s: None })
}

/// The plan that the backend does run, with the times of its launches.
fn profile(args: &Args, model: &Model, taps: TapSelection, depth: usize) -> Result<Planned, CliError> {
    let options = CompileOptions { taps, ..args.backend.compile_options(model)? };
    check_no_experts("graph --profile", options.place.as_deref())?;
    let mut session = Session::new(engine::load(model, &args.backend.backend, &options)?.executable)?;
    let info = session.info().clone();
    let backend = match &options.place {
        Some(_) => auto::backend(&model.graph, &args.backend.backend, &options)?.0,
        None => registry::by_name(info.backend)?,
    };
    let tokens = args.step_tokens.get();
    if tokens > info.micro_batch {
        return Err(CliError::bad_input(format!(
            "--step-tokens {tokens}: backend {} runs at most {} tokens in a step",
            info.backend, info.micro_batch
        )));
    }
    // Tokens at random: one token repeated would time one set of experts.
    let mut random = Random::new(&[0]);
    let below = model.config.vocab_size as u64;
    let mut draw =
        |n: usize| -> Vec<TokenId> { (0..n).map(|_| TokenId((random.next_u64() % below) as u32)).collect() };
    session.feed(&draw(depth), LogitsRows::Last, None, |_, _| Ok(()))?;
    session.mark()?;
    let mut profile = Profile::new();
    session.feed(&draw(tokens), LogitsRows::Last, None, |_, _| Ok(()))?;
    for _ in 0..args.repetitions.get() {
        session.truncate(depth)?;
        session.feed(&draw(tokens), LogitsRows::Last, Some(&mut profile), |_, _| Ok(()))?;
    }
    let plan = session.executable().plan(tokens).clone();
    let measured = profile.of(&plan);
    // A device that its backend does not list, as the host harness of CUDA's kernels, has no memory of its own to measure.
    let devices = backend.devices().unwrap_or_default();
    let is_cpu = devices.iter().any(|d| d.name == info.device && d.kind == DeviceKind::Cpu);
    let bandwidth_bytes_per_s = match (args.bandwidth, NonZeroUsize::new(info.threads)) {
        (None, Some(threads)) if is_cpu => Some(bandwidth::read_bytes_per_second(threads)),
        _ => None,
    };
    if args.bandwidth.is_none() && bandwidth_bytes_per_s.is_none() {
        output::note("note: the device's bandwidth is not known; --bandwidth GB/S adds the share of it");
    }
    let view = view(backend.as_ref(), &options, Some(info.device));
    Ok(Planned { plan, backend, options, view, measured, bandwidth_bytes_per_s })
}

fn view(backend: &dyn Backend, options: &CompileOptions, device: Option<String>) -> BackendView {
    let profile = backend.profile(options);
    BackendView {
        name: backend.name().to_owned(),
        device,
        activations: profile.name().to_owned(),
        q8_super_block: profile.super_block().map(ActBlock::elems),
    }
}

/// The source of the kernel of a launch, given by number or kind.
fn shader(planned: &Planned, wanted: &str) -> Result<String, CliError> {
    let launches = &planned.plan.launches;
    let number = wanted.parse::<usize>().ok();
    let launch = match number {
        Some(id) => launches.get(id),
        None => launches.iter().find(|l| l.pattern == wanted),
    };
    let Some(launch) = launch else {
        let mut kinds: Vec<&str> = launches.iter().map(|l| l.pattern).collect();
        kinds.sort_unstable();
        kinds.dedup();
        return Err(CliError::bad_input(format!(
            "no launch '{wanted}': wanted 0 to {} or one of {}",
            launches.len().saturating_sub(1),
            kinds.join(", ")
        )));
    };
    let source = planned.backend.kernel(&planned.plan, launch, &planned.options).and_then(|k| k.source);
    source.ok_or_else(|| {
        CliError::unsupported(format!(
            "backend {} keeps no source of launch {} ({}); try --backend wgpu",
            planned.view.name,
            launch.id.index(),
            launch.pattern
        ))
    })
}
