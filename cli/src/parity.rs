//! `moe-run parity`: which is the first operation that is wrong, and is it wrong by itself or through its inputs?

use std::{fmt::Write as _, num::NonZeroUsize, path::PathBuf, sync::Arc};

use moe_run_backends::{Activations, BackendError, CompileOptions, KvType, WeightSource, auto, registry};
use moe_run_graph::{
    Model,
    ids::TokenId,
    shown::{shown, shown_list},
};
use moe_run_inspect::{
    parity::{Against, Comparison, ForcedRun, Options, ParityError, Report, SaveAround, Subject, Verdict},
    taps::{
        save::{ModelIdentity, SaveOptions, check_dir},
        tensor_file::FileFormat,
        tensor_set::TensorSet,
    },
    tolerance::Relation,
};

use crate::{
    CliError, ExitCode,
    announce::on_opened,
    common::{self, ModelArgs},
    inputs,
    interrupt::Generation,
    output, output_file,
    place_args::PlaceArgs,
    prompt::PromptArgs,
    trace::{StopOnInterrupt, Stopped},
};

/// Stages and ops that the text lists around the first that is wrong.
const LINES_AROUND: usize = 6;
/// Names that the text lists of what was not compared.
const NAMES_LISTED: usize = 6;

/// Arguments of `parity`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Which model
    #[command(flatten)]
    pub model: ModelArgs,

    /// Backend that is judged; `auto` takes the fastest that can, and says which
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = common::backend_names())]
    pub backend: String,

    /// What it is judged by: another backend, a directory of saved tensors, or a safetensors file of stages
    #[arg(long, value_name = "BACKEND|PATH")]
    pub against: String,

    /// The tokens; where absent, those that saved stages record
    #[command(flatten)]
    pub prompt: PromptArgs,

    /// Evaluate the last N tokens one by one, as generation does
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true, value_parser = common::whole_number::<usize>)]
    pub decode: usize,

    /// Make the forced run whatever the free run finds
    #[arg(long, conflicts_with = "free_only")]
    pub forced: bool,

    /// Make no forced run
    #[arg(long)]
    pub free_only: bool,

    /// Precision of activations on both sides [default: what saved stages record, f32 where they record none, else the
    /// backend's fastest]
    #[arg(long, value_name = "TYPE", value_parser = common::activations())]
    pub activations: Option<Activations>,

    /// How the KV cache is stored on both sides [default: what saved stages record, f32 where they record none, else f16]
    #[arg(long, value_name = "TYPE", value_parser = common::kv_types())]
    pub kv_type: Option<KvType>,

    /// Device of the judged backend; without --backend a list of devices that share the model, such as cuda:0,cpu
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,

    /// How several devices share it
    #[command(flatten)]
    pub place: PlaceArgs,

    /// Device of the other backend
    #[arg(long, value_name = "DEVICE")]
    pub against_device: Option<String>,

    /// Threads of the CPU backend [default: the physical cores]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = common::whole_number::<NonZeroUsize>)]
    pub threads: Option<NonZeroUsize>,

    /// After a divergence, save both sides' stages of the layer in question and the one before: DIR/backend, DIR/against
    #[arg(long, value_name = "DIR")]
    pub save_tensor_dir: Option<PathBuf>,

    /// Replace what an earlier run saved in the same directory
    #[arg(long, requires = "save_tensor_dir")]
    pub save_tensor_overwrite: bool,

    /// Print one JSON object instead of text
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Compares; the verdict is the exit code.
///
/// Errors: arguments, model or stages that cannot be read or do not match, backends that are not there, a failure while
/// running.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let save = args.save_tensor_dir.as_ref().map(|dir| SaveOptions {
        dir: dir.clone(),
        format: FileFormat::Aprt,
        overwrite: args.save_tensor_overwrite,
    });
    let check_save = || -> Result<(), CliError> {
        let Some(save) = &save else { return Ok(()) };
        output_file::check_name("--save-tensor-dir", &save.dir)?;
        for dir in [save.dir.clone(), save.dir.join("backend"), save.dir.join("against")] {
            check_dir(&dir, save.overwrite)?;
        }
        Ok(())
    };
    check_save()?;
    let place = args.place.request(&args.backend, args.device.as_deref())?;
    let known = registry::all().iter().any(|b| b.name() == args.against);
    let saved = if known {
        None
    } else {
        let path = PathBuf::from(&args.against);
        if !path.exists() {
            let names: Vec<&str> = registry::all().iter().map(|b| b.name()).collect();
            return Err(CliError::bad_input(format!(
                "--against {}: neither a backend ({}) nor a directory or file",
                args.against,
                names.join(", ")
            )));
        }
        let set = TensorSet::open(&path)?;
        inputs::add_tensors(&set, "a file of --against")?;
        Some(set)
    };
    let recorded = saved.as_ref().and_then(TensorSet::tokens);
    let prompt = if args.prompt.is_given() || recorded.is_none() {
        Some(args.prompt.clone().resolve()?)
    } else {
        None
    };
    let model = args.model.open()?;
    check_save()?;
    let tokens = match (prompt, recorded) {
        (Some(prompt), _) => prompt.encode_for(&model)?,
        (None, recorded) => recorded.unwrap_or_default(),
    };
    check_tokens(&model, &tokens)?;
    if args.decode > tokens.len() {
        return Err(CliError::bad_input(format!(
            "--decode {}: wanted at most the {} tokens that there are",
            args.decode,
            tokens.len()
        )));
    }
    let setting = |key: &str| saved.as_ref().and_then(|s| s.setting(key));
    let (activations, kv_type, relation) = match &saved {
        None => (args.activations, args.kv_type.unwrap_or_default(), Relation::Same),
        Some(_) => {
            // Stages that record no setting are exact: compared as exactly as the backend can, unless asked otherwise.
            let stored = (
                setting("activations").and_then(Activations::parse),
                setting("kv_type").and_then(KvType::parse),
            );
            let activations = args.activations.or(stored.0).unwrap_or(Activations::F32);
            let kv_type = args.kv_type.or(stored.1).unwrap_or(KvType::F32);
            // 8-bit stages that do not say their block may have another than this run.
            let block_known = activations != Activations::Q8
                || saved.as_ref().is_some_and(|s| s.q8_super_block().is_some());
            let same = stored == (Some(activations), Some(kv_type)) && block_known;
            (Some(activations), kv_type, if same { Relation::Same } else { Relation::Different })
        }
    };
    let compile = CompileOptions {
        activations,
        kv_type,
        device: args.device.clone().filter(|_| place.is_none()),
        place,
        threads: args.threads.map(NonZeroUsize::get),
        ..CompileOptions::default()
    };
    let (backend, chosen) = auto::backend(&model.graph, &args.backend, &compile)?;
    let other = if known { Some(registry::by_name(&args.against)?) } else { None };
    let backends = registry::all();
    let against = match (&other, &saved) {
        (Some(other), _) => Against::Backend(other.as_ref(), args.against_device.as_deref()),
        (None, Some(set)) => Against::Saved(set, &backends),
        (None, None) => return Err(CliError::bad_input("--against: nothing to compare with")),
    };
    let weights: Arc<dyn WeightSource> = Arc::clone(&model.file) as Arc<dyn WeightSource>;
    let subject =
        Subject { backend: backend.as_ref(), graph: &model.graph, weights: Arc::clone(&weights), hook: None };
    let options = Options {
        tokens,
        decode_tokens: args.decode,
        forced: match (args.forced, args.free_only) {
            (true, _) => ForcedRun::Always,
            (_, true) => ForcedRun::Never,
            _ => ForcedRun::OnDivergence,
        },
        compile: CompileOptions { opened: Some(on_opened(chosen)), ..compile },
        saved_relation: relation,
        model: saved.as_ref().map(|_| ModelIdentity::of(&model.file)),
    };
    let mut comparison = Comparison::new(&model.graph, &weights, subject, against, &options)?;
    let report = comparison.report()?;
    if let Some(save) = save {
        let save = SaveAround {
            options: save,
            model: ModelIdentity::of(&model.file),
            architecture: &model.config.architecture,
        };
        let generation = Generation::begin();
        let mut stop = StopOnInterrupt(&generation);
        match comparison.save_around(&report, &save, &mut stop) {
            Err(ParityError::Backend(BackendError::Observer(cause))) if cause.is::<Stopped>() => {
                return Err(CliError::Interrupted);
            }
            saved => {
                for dir in saved? {
                    output::note(&format!("saved tensors: {}", dir.display()));
                }
            }
        }
    }
    if args.json {
        output::json(&report)?;
    } else {
        output::text(&text(&report))?;
    }
    Ok(if report.passed() { ExitCode::Ok } else { ExitCode::Verdict })
}

fn check_tokens(model: &Model, tokens: &[TokenId]) -> Result<(), CliError> {
    let vocab_size = model.config.vocab_size;
    match tokens.iter().find(|t| t.index() >= vocab_size) {
        Some(id) => Err(CliError::bad_input(format!(
            "token {id}: wanted ids below the vocabulary's {vocab_size}; were the stages saved from another model?"
        ))),
        None => Ok(()),
    }
}

impl From<ParityError> for CliError {
    fn from(error: ParityError) -> CliError {
        match error {
            ParityError::Backend(error) => error.into(),
            ParityError::Save(error) => error.into(),
            error @ ParityError::SavedBlock { .. } => CliError::unsupported(error),
            error => CliError::bad_input(error),
        }
    }
}

/// How many there are, and the first of them. They come from files, and may hold anything.
fn listed(names: &[String]) -> String {
    let first = shown_list(names.iter().take(NAMES_LISTED));
    match names.len() {
        n if n > NAMES_LISTED => format!("{n}: {first}, and {} more", n - NAMES_LISTED),
        n => format!("{n}: {first}"),
    }
}

/// The report for people.
pub fn text(r: &Report) -> String {
    let mut t = String::new();
    let side = |s: &moe_run_inspect::parity::SideInfo| match &s.executable {
        Some(e) => {
            let block = e
                .q8_super_block
                .map_or_else(String::new, |b| format!(" (blocks of {} for super-block formats)", b.elems()));
            format!(
                "{} on {}, activations {}{block}, KV cache {}",
                s.name, e.device, e.activations, e.kv_type
            )
        }
        None => shown(&s.name).to_string(),
    };
    let _ = writeln!(t, "{}\nagainst {}", side(&r.backend), side(&r.against));
    if let Some(m) = &r.saved_from {
        let _ = writeln!(
            t,
            "saved from another model: {} ({} bytes, sample hash {})",
            shown(&m.file),
            m.size_bytes,
            shown(&m.sample_hash)
        );
    }
    let _ = writeln!(
        t,
        "{} tokens, {} of them one by one; free run: tolerance {:.1e} ({})",
        r.tokens, r.decode_tokens, r.free_tolerance.value, r.free_tolerance.cause
    );
    let _ = writeln!(t, "\n{:32} {:>11} {:>11} {:>11}", "free run: stage", "rel. L2", "cosine", "max |a-b|");
    let first = r.stages.iter().position(|s| s.beyond).unwrap_or(r.stages.len());
    let around =
        if first == r.stages.len() { 0..0 } else { first.saturating_sub(LINES_AROUND)..first + LINES_AROUND };
    for s in r.stages.iter().take(around.end).skip(around.start) {
        let mark = match (s.beyond, s.production) {
            (true, true) => "  BEYOND",
            (true, false) => "  beyond (recomputed)",
            _ => "",
        };
        let _ = writeln!(
            t,
            "{:32} {:>11.3e} {:>11.8} {:>11.3e}{mark}",
            s.stage.path(s.layer),
            s.relative_l2,
            s.cosine,
            s.max_abs
        );
    }
    let worst = r.stages.iter().map(|s| s.relative_l2).fold(0.0, f64::max);
    let _ = writeln!(t, "{} stages, the worst {worst:.3e}", r.stages.len());
    if !r.missing_stages.is_empty() {
        let _ = writeln!(t, "not compared, as the other side lacks them: {}", listed(&r.missing_stages));
    }
    if !r.unknown_tensors.is_empty() {
        let _ = writeln!(t, "not compared, as this model has no such stages: {}", listed(&r.unknown_tensors));
    }
    if let Some(n) = &r.not_finite {
        let from = match &n.weights[..] {
            [] => "every weight that it is computed from is finite".to_owned(),
            [one] => format!("the weight {} is not finite", shown(one)),
            many => format!("weights are not finite: {}", listed(many)),
        };
        let sides = match n.on_both_sides {
            true => "on both sides at the same places; what is computed from them could not be judged",
            false => "on this side, and not the same on the other",
        };
        let _ = writeln!(
            t,
            "warning: {} holds {} values that are not finite {sides}; {from} (`moe-run inspect --check` looks at all weights)",
            n.stage.path(n.layer),
            n.values
        );
    }
    for f in &r.routing_flips {
        let _ = writeln!(
            t,
            "routing flip: layer {}, position {}: {:?} instead of {:?}; margin {:.3e}, logits differ by {:.3e}: {}",
            f.layer,
            f.position,
            f.flip.only_a,
            f.flip.only_b,
            f.flip.margin,
            f.flip.logit_difference,
            if f.flip.near_tie { "a near-tie" } else { "NOT a near-tie" }
        );
    }
    if !r.ops.is_empty() {
        let mut ops: Vec<_> = r.ops.iter().filter(|o| o.forced).collect();
        ops.sort_by(|a, b| (b.local_error / b.tolerance).total_cmp(&(a.local_error / a.tolerance)));
        let _ = writeln!(
            t,
            "\n{:32} {:>11} {:>11}",
            "forced run: the nearest to limit", "own error", "tolerance"
        );
        for o in ops.iter().take(LINES_AROUND) {
            let mark = if o.beyond { "  BEYOND" } else { "" };
            let _ = writeln!(t, "{:32} {:>11.3e} {:>11.1e}{mark}", o.op, o.local_error, o.tolerance);
        }
    }
    if let Some(l) = &r.logits
        && l.not_finite > 0
    {
        let _ = writeln!(t, "\nlogits: not finite at {} positions on both sides", l.not_finite);
    }
    if let Some(l) = r.logits.as_ref().filter(|l| l.positions > 0) {
        let _ = writeln!(
            t,
            "\nlogits: the best token agrees at {:.1} % of {} positions; KL {:.3e} (largest {:.3e}); largest difference {:.3e}",
            l.argmax_agreement * 100.0,
            l.positions,
            l.kl,
            l.kl_max,
            l.max_abs
        );
    }
    let _ =
        writeln!(t, "\n{}: {}", if r.verdict == Verdict::Pass { "pass" } else { "DIVERGED" }, r.conclusion);
    if let Some(f) = &r.first {
        let _ = writeln!(t, "  op        {}", f.op);
        if let Some(stage) = f.stage {
            let _ = writeln!(t, "  stage     {}", stage.path(f.layer));
        }
        let _ = writeln!(
            t,
            "  error     {:.3e}, tolerance {:.1e}: {}",
            f.local_error, f.tolerance, f.tolerance_cause
        );
        if let (Some(tensor), Some(format)) = (&f.tensor, f.format) {
            let _ = writeln!(t, "  tensor    {tensor} ({format})");
        }
        if let Some(launch) = f.launch {
            let _ = writeln!(
                t,
                "  launch    {launch}{}",
                f.kernel.as_ref().map_or(String::new(), |k| format!(", kernel {k}"))
            );
        }
        if let Some(shape) = &f.shape {
            let _ = writeln!(t, "  output    {shape:?}, step from position {}", f.position);
        }
    }
    t
}
