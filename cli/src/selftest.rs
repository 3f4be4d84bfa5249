//! `moe-run selftest`: does this build compute rightly on this machine? Every op on random cases, and the demo model, against
//! the reference backend under the same definition of activations and KV cache.

use crate::common::{backend_names, check_device};
use crate::generate::{GenerateArgs, generate};
use crate::{CliError, ExitCode, demo, output};
use moe_run_backends::generate::StopReason;
use moe_run_backends::reference::Reference;
use moe_run_backends::sampler::{Sampler, SamplerOptions};
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{
    Activations, Backend, BackendError, CompileOptions, DeviceKind, ExecutableInfo, WeightSource, Weights,
    registry,
};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::quant::Format;
use moe_run_inspect::cases::groups::{self, GroupCase};
use moe_run_inspect::cases::{self, OpCase};
use moe_run_text::chat::{ChatInput, ChatTemplate};
use moe_run_text::tokenizer::Tokenizer;
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// Cases of an op, each with its own random sizes and values: of ops that read weights, so many for each format.
const SEEDS_OF_FORMATS: u64 = 2;
const SEEDS_OF_OTHERS: u64 = 8;

/// The demo model's answers: from a float64 evaluation of its exact weights, in which the best logit is ahead of the second
/// by 2.3 and more everywhere, so that no rounding can change them.
const ANSWERS: [(&str, &str); 4] = [
    ("What is 2+2?", "2 + 2 = 4"),
    ("Capital of France:", "The capital of France is Paris."),
    ("Translate to Spanish: Hello world", "¡Hola mundo!"),
    ("Hello", "Hello! How can I help you today?"),
];

/// How far the demo model's logits may be from the reference's, by activations. The differences of [`cases::TOLERANCE`] pass
/// through four layers, and each may round a cached half the other way. An 8-bit activation that rounds the other way moves
/// by a 127th of its block's largest, ten thousand times as far as what tipped it.
fn demo_tolerance(activations: Activations) -> f64 {
    match activations {
        Activations::F32 => 1e-3,
        Activations::F16 | Activations::Q8 => 1e-2,
    }
}

/// Arguments of `selftest`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Backend to test; `auto` tests each that has a device here
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = backend_names())]
    pub backend: String,

    /// Device of that backend, by number or name, as `moe-run devices` lists them
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize, Debug)]
struct Report {
    schema_version: u32,
    verdict: Verdict,
    seconds: f64,
    backends: Vec<BackendReport>,
}

#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Pass,
    Fail,
}

impl Verdict {
    fn of(passed: bool) -> Verdict {
        if passed { Verdict::Pass } else { Verdict::Fail }
    }
}

#[derive(Serialize, Debug)]
struct BackendReport {
    backend: &'static str,
    device: String,
    /// Empty for the reference, which the cases are compared with.
    ops: Vec<OpReport>,
    demo: Vec<DemoReport>,
}

impl BackendReport {
    fn passed(&self) -> bool {
        self.ops.iter().all(|op| op.failures.is_empty())
            && self.demo.iter().all(|demo| demo.failures.is_empty())
    }
}

#[derive(Serialize, Debug)]
struct OpReport {
    op: &'static str,
    activations: Activations,
    cases: usize,
    /// Relative L2 of the worst result; null where it is not finite.
    worst: f64,
    tolerance: f64,
    failures: Vec<String>,
}

#[derive(Serialize, Debug)]
struct DemoReport {
    activations: Activations,
    answers: usize,
    /// Relative L2 of the worst logits; null for the reference.
    worst: Option<f64>,
    tolerance: f64,
    failures: Vec<String>,
}

/// Tests backends, and says what is wrong.
///
/// Errors: the backend or its device is not there, or standard output cannot be written. A wrong result is no error but
/// exit code 1.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    check_device(&args.backend, args.device.as_deref())?;
    let started = Instant::now();
    let backends: Vec<Box<dyn Backend>> = match args.backend.as_str() {
        "auto" => registry::all()
            .into_iter()
            .filter(|backend| match backend.devices() {
                Ok(devices) if devices.iter().any(|d| d.kind != DeviceKind::Unsupported) => true,
                Ok(devices) => {
                    for device in devices {
                        let why =
                            device.details.last().map(|(_, why)| format!(": {why}")).unwrap_or_default();
                        output::note(&format!("not tested: {}, which cannot be used{why}", device.name));
                    }
                    false
                }
                Err(error) => {
                    output::note(&format!("not tested: {error}"));
                    false
                }
            })
            .collect(),
        name => vec![registry::by_name(name)?],
    };
    let mut reports = Vec::new();
    for backend in backends {
        // Hundreds of small graphs: one device for all of them.
        let backend = backend.sharing().unwrap_or(backend);
        let report = test(backend.as_ref(), args.device.as_deref())?;
        if !args.json {
            output::text(&describe(&report))?;
        }
        reports.push(report);
    }
    let verdict = Verdict::of(reports.iter().all(BackendReport::passed));
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        output::json(&Report { schema_version: 1, verdict, seconds, backends: reports })?;
    } else {
        let word = if verdict == Verdict::Pass { "passed" } else { "FAILED" };
        output::text(&format!("{word} in {seconds:.1} s\n"))?;
    }
    Ok(if verdict == Verdict::Pass { ExitCode::Ok } else { ExitCode::Verdict })
}

/// All of a backend's tests.
fn test(backend: &dyn Backend, device: Option<&str>) -> Result<BackendReport, CliError> {
    let model = Model::from_file(demo::file()?)?;
    let base =
        CompileOptions { device: device.map(str::to_owned), ctx_size: 256, ..CompileOptions::default() };
    let source = Arc::clone(&model.file) as Arc<dyn WeightSource>;
    let weights = backend.load(&model.graph, source, &base)?;
    // What the backend takes by itself, and f32 beside it.
    let fastest = weights.compile(&model.graph, &base)?.info().clone();
    let mut activations = vec![fastest.activations];
    if fastest.activations != Activations::F32 {
        activations.push(Activations::F32);
    }
    let mut report =
        BackendReport { backend: backend.name(), device: fastest.device, ops: Vec::new(), demo: Vec::new() };
    match test_all(backend, &model, weights.as_ref(), &activations, &base, &mut report) {
        // A GPU on which a kernel failed answers nothing any more: what was found until then is the result.
        Err(error) if !report.passed() => output::warning(&format!("not tested any further: {error}")),
        tested => tested?,
    }
    Ok(report)
}

fn test_all(
    backend: &dyn Backend,
    model: &Model,
    weights: &dyn Weights,
    activations: &[Activations],
    base: &CompileOptions,
    report: &mut BackendReport,
) -> Result<(), CliError> {
    for &activations in activations {
        let options = CompileOptions { activations: Some(activations), ..base.clone() };
        if backend.name() != Reference.name() {
            let ops = cases::OPS.iter().map(|op| Subject::Op(op));
            for subject in ops.chain(GroupCase::ALL.iter().map(|group| Subject::Group(*group))) {
                let (op, worst, tolerance) = (subject.name(), 0.0, cases::TOLERANCE);
                let mut found =
                    OpReport { op, activations, cases: 0, worst, tolerance, failures: Vec::new() };
                let tested = test_op(backend, subject, &mut found, &options);
                // What it found counts, also where it could not go on.
                report.ops.push(found);
                tested?;
            }
        }
        report.demo.push(test_demo(backend, model, weights, activations, &options)?);
    }
    Ok(())
}

/// What cases are of.
#[derive(Clone, Copy)]
enum Subject {
    /// An op by itself, by its stem.
    Op(&'static str),
    /// Nodes that backends run as one launch.
    Group(GroupCase),
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Subject::Op(op) => op,
            Subject::Group(group) => group.name(),
        }
    }

    /// The cases, of all formats where the op reads weights.
    fn cases(self) -> Result<Vec<OpCase>, BackendError> {
        match self {
            Subject::Op(op) => {
                let (formats, seeds) = match cases::takes_formats(op) {
                    true => (&Format::ALL[..], SEEDS_OF_FORMATS),
                    false => (&[Format::F32][..], SEEDS_OF_OTHERS),
                };
                let all = formats.iter().flat_map(|format| (0..seeds).map(move |seed| (*format, seed)));
                all.filter_map(|(format, seed)| cases::case(op, format, seed).transpose()).collect()
            }
            Subject::Group(group) => (0..SEEDS_OF_OTHERS).map(|seed| groups::case(group, seed)).collect(),
        }
    }

    /// How far a case's results may be from the reference's.
    fn tolerance(self, case: &OpCase, info: &ExecutableInfo) -> f64 {
        match self {
            Subject::Op(_) => cases::TOLERANCE,
            Subject::Group(_) => groups::tolerance(case, info),
        }
    }
}

/// Runs the cases that the backend does not refuse.
fn test_op(
    backend: &dyn Backend,
    subject: Subject,
    report: &mut OpReport,
    options: &CompileOptions,
) -> Result<(), CliError> {
    for case in subject.cases()? {
        let mut executable = match cases::compile(&case, backend, options) {
            Err(error) if cases::is_refusal(&error) => continue,
            compiled => compiled?,
        };
        let wanted = cases::run(&case, &Reference, &cases::same_definition(executable.info()))?;
        let tolerance = subject.tolerance(&case, executable.info());
        let typical = cases::typical(&case);
        report.tolerance = report.tolerance.max(tolerance);
        report.cases += 1;
        match cases::run_steps(&case, executable.as_mut()) {
            Ok(found) => {
                let distances =
                    found.iter().zip(&wanted).map(|(f, w)| cases::distance_of_typical(f, w, typical));
                let worst = distances.fold(0.0, f64::max);
                report.worst = report.worst.max(worst);
                if worst > tolerance || found.len() != wanted.len() {
                    report
                        .failures
                        .push(format!("{}: relative L2 {worst:.1e} of {tolerance:.0e}", case.name));
                }
            }
            Err(error) => report.failures.push(format!("{}: {error}", case.name)),
        }
    }
    Ok(())
}

/// The demo model's logits against the reference's, and its answers against the known ones.
fn test_demo(
    backend: &dyn Backend,
    model: &Model,
    weights: &dyn Weights,
    activations: Activations,
    options: &CompileOptions,
) -> Result<DemoReport, CliError> {
    let tokenizer = Tokenizer::from_metadata(model.metadata())?;
    let template = ChatTemplate::from_metadata(model.metadata())?;
    let mut found = Session::new(weights.compile(&model.graph, options)?)?;
    let mut wanted = None;
    if backend.name() != Reference.name() {
        let same = CompileOptions { ctx_size: options.ctx_size, ..cases::same_definition(found.info()) };
        let source = Arc::clone(&model.file) as Arc<dyn WeightSource>;
        wanted = Some(Session::new(Reference.compile(&model.graph, source, &same)?)?);
    }
    let mut sampler = Sampler::new(SamplerOptions::GREEDY)?;
    let mut report = DemoReport {
        activations,
        answers: 0,
        worst: wanted.is_some().then_some(0.0),
        tolerance: demo_tolerance(activations),
        failures: Vec::new(),
    };
    for (question, answer) in ANSWERS {
        let input = ChatInput::conversation([("user", question)]);
        let prompt = tokenizer.encode_rendered(&template.render(&input, tokenizer.control_texts())?)?;
        if let Some(wanted) = &mut wanted {
            let distance = distance(&logits(&mut found, &prompt)?, &logits(wanted, &prompt)?);
            report.worst = report.worst.map(|worst| worst.max(distance));
            if distance > report.tolerance {
                report.failures.push(format!("{question:?}: logits: relative L2 {distance:.1e}"));
            }
        }
        let args = GenerateArgs { max_tokens: Some(40), ..GenerateArgs::default() };
        let outcome = generate(&mut found, Some(&tokenizer), &mut sampler, &prompt, &args, None, |_| Ok(()))?;
        if outcome.stop_reason == StopReason::Interrupted {
            return Err(CliError::Interrupted);
        }
        if let Some(failure) = outcome.failure {
            return Err(failure);
        }
        report.answers += 1;
        if outcome.text != answer {
            report.failures.push(format!("{question:?}: answered {:?}, wanted {answer:?}", outcome.text));
        }
    }
    Ok(report)
}

/// The logits behind a prompt.
fn logits(session: &mut Session, prompt: &[TokenId]) -> Result<Vec<f32>, BackendError> {
    let kept = session.reuse_prefix(prompt)?;
    session.feed(&prompt[kept..], LogitsRows::Last, None, |_, _| Ok(()))?;
    let mut logits = Vec::new();
    session.logits(&mut logits)?;
    Ok(logits)
}

fn distance(found: &[f32], wanted: &[f32]) -> f64 {
    let tensor = |values: &[f32]| moe_run_backends::HostTensor::f32(vec![values.len()], values.to_vec());
    cases::distance(&tensor(found), &tensor(wanted))
}

fn describe(report: &BackendReport) -> String {
    let mut text = format!("{} on {}\n", report.backend, report.device);
    let verdict = |failures: &[String]| if failures.is_empty() { "ok" } else { "FAILED" };
    for op in &report.ops {
        if op.cases == 0 {
            text.push_str(&format!("  {:18} {:3}  is not on this backend\n", op.op, op.activations.name()));
            continue;
        }
        text.push_str(&format!(
            "  {:18} {:3}  {:3} cases, worst {:.1e} of {:.0e}: {}\n",
            op.op,
            op.activations.name(),
            op.cases,
            op.worst,
            op.tolerance,
            verdict(&op.failures)
        ));
    }
    for demo in &report.demo {
        let worst = demo
            .worst
            .map_or(String::new(), |worst| format!(", logits worst {worst:.1e} of {:.0e}", demo.tolerance));
        text.push_str(&format!(
            "  {:18} {:3}  {:3} answers{worst}: {}\n",
            "demo model",
            demo.activations.name(),
            demo.answers,
            verdict(&demo.failures)
        ));
    }
    for failure in
        report.ops.iter().flat_map(|op| &op.failures).chain(report.demo.iter().flat_map(|d| &d.failures))
    {
        text.push_str(&format!("  FAILED: {failure}\n"));
    }
    text
}
