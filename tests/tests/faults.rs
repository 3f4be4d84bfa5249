//! Every fault is named: op and layer exactly, at the first, a middle and the last layer, in prefill and in decode.

use moe_run_backends::faults::{Fault, Injected};
use moe_run_backends::parity::{Against, ForcedRun, Options, Report, Subject, compare};
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::taps::Fanout;
use moe_run_backends::tolerance::Relation;
use moe_run_backends::{
    Activations, Backend, CompileOptions, HostTensor, KvType, Observer, WeightSource, reference::Reference,
};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::passes::TapSelection;
use moe_run_tests::collect::Collect;
use moe_run_tests::{fixtures, subjects};
use std::sync::Arc;

const TOKENS: [u32; 15] = [3070, 303, 198, 354, 294, 220, 17, 10, 17, 30, 3071, 198, 3070, 304, 198];

fn compile_options(device: &Option<String>) -> CompileOptions {
    CompileOptions {
        device: device.clone(),
        activations: Some(Activations::F32),
        kv_type: KvType::F16,
        ctx_size: 64,
        max_logits_rows: TOKENS.len(),
        micro_batch: Some(TOKENS.len()),
        taps: TapSelection::All,
        ..CompileOptions::default()
    }
}

/// A free run of one side, one step's taps after another.
fn stages(
    backend: &dyn Backend,
    device: &Option<String>,
    graph: &moe_run_graph::ir::Graph,
    weights: &Arc<dyn WeightSource>,
    hook: Option<&mut dyn Observer>,
    decode: bool,
) -> Vec<Collect> {
    let executable = backend.compile(graph, weights.clone(), &compile_options(device)).unwrap();
    let mut session = Session::new(executable).unwrap();
    let tokens = TOKENS.map(TokenId);
    let mut nothing = Collect::default();
    let hook: &mut dyn Observer = match hook {
        Some(hook) => hook,
        None => &mut nothing,
    };
    let mut steps = Vec::new();
    let step = if decode { 1 } else { tokens.len() };
    for chunk in tokens.chunks(step) {
        let mut collect = Collect::default();
        // The hook looks at launches only; taps go to both, and Collect refuses a second value of a stage.
        let mut launches = LaunchesOnly(&mut *hook);
        let mut fanout = Fanout { sinks: vec![&mut launches, &mut collect] };
        session.feed(chunk, LogitsRows::All, Some(&mut fanout), |_, _| Ok(())).unwrap();
        steps.push(collect);
    }
    steps
}

struct LaunchesOnly<'a>(&'a mut dyn Observer);

impl Observer for LaunchesOnly<'_> {
    fn after_launch(
        &mut self,
        plan: &moe_run_graph::passes::Plan,
        launch: &moe_run_graph::passes::Launch,
        elapsed: std::time::Duration,
        values: &mut dyn moe_run_backends::ValueAccess,
    ) -> Result<(), moe_run_backends::BackendError> {
        self.0.after_launch(plan, launch, elapsed, values)
    }
}

fn run(
    model: &Model,
    backend: &dyn Backend,
    device: &Option<String>,
    injected: &mut Injected,
    decode: bool,
    forced: ForcedRun,
) -> Report {
    let weights: Arc<dyn WeightSource> = model.file.clone();
    let subject = Subject {
        backend,
        graph: &injected.graph,
        weights: injected.weights.clone(),
        hook: Some(&mut injected.hook),
    };
    let options = Options {
        tokens: TOKENS.map(TokenId).into(),
        decode_tokens: if decode { TOKENS.len() - 1 } else { 0 },
        forced,
        compile: CompileOptions { taps: TapSelection::None, micro_batch: None, ..compile_options(device) },
        saved_relation: Relation::Same,
    };
    compare(&model.graph, &weights, subject, Against::Backend(&Reference, None), &options).unwrap()
}

/// Whether the fault changes its own op's output on this input: what is before it is intact, so its inputs are equal.
fn visible(
    model: &Model,
    backend: &dyn Backend,
    device: &Option<String>,
    fault: Fault,
    injected: &mut Injected,
    layer: usize,
    decode: bool,
    intact: &[Collect],
) -> bool {
    let broken =
        stages(backend, device, &injected.graph, &injected.weights, Some(&mut injected.hook), decode);
    let node = model
        .graph
        .nodes
        .iter()
        .find(|n| n.name == fault.node_name() && n.layer.is_some_and(|l| l.index() == layer))
        .unwrap();
    let shown: Vec<String> = model
        .graph
        .taps()
        .filter(|(tap, _)| tap.inputs.iter().any(|v| node.outputs.contains(v)))
        .map(|(tap, stage)| stage.path(tap.layer.map(|l| l.index())))
        .collect();
    let bits = |t: &HostTensor| t.data.to_f32().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    intact.iter().zip(&broken).any(|(a, b)| shown.iter().any(|s| bits(&a.values[s]) != bits(&b.values[s])))
}

/// What a plain comparison of two free runs names: the makers of the first stage beyond its limit.
fn named_by_free_run(model: &Model, report: &Report) -> Option<Vec<String>> {
    let first = report.stages.iter().find(|s| s.beyond && s.production)?;
    let (tap, _) = model
        .graph
        .taps()
        .find(|(n, s)| *s == first.stage && n.layer.map(|l| l.index()) == first.layer)
        .unwrap();
    let makers = tap.inputs.iter().filter_map(|v| model.graph.value(*v).producer);
    Some(makers.filter_map(|p| model.graph.node(p)).map(|n| n.path()).collect())
}

/// Injects every fault on one backend; the reference is the other side.
fn every_fault_is_named(name: &str) {
    let Some(subject) = subjects().into_iter().find(|s| s.backend.name() == name) else {
        eprintln!("SKIPPED: backend {name} is not in this build, or has no device here");
        return;
    };
    let (backend, device) = (subject.backend.as_ref(), &subject.device);
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let weights: Arc<dyn WeightSource> = model.file.clone();
    let last = model.graph.num_layers - 1;
    if let Err(error) = backend.compile(&model.graph, weights.clone(), &compile_options(device)) {
        eprintln!("SKIPPED: {name}: {error}");
        return;
    }
    let (mut injections, mut named, mut free_named, mut free_alarms) = (0, 0, 0, 0);
    for decode in [false, true] {
        let intact = stages(backend, device, &model.graph, &weights, None, decode);
        for &fault in Fault::ALL {
            for layer in [0, last / 2, last] {
                let case =
                    format!("{name} {fault:?} layer {layer} {}", if decode { "decode" } else { "prefill" });
                let mut injected = fault.inject(&model.graph, &weights, layer).unwrap();
                if let Err(error) =
                    backend.compile(&injected.graph, injected.weights.clone(), &compile_options(device))
                {
                    eprintln!("SKIPPED: {case}: {error}");
                    continue;
                }
                assert!(
                    visible(&model, backend, device, fault, &mut injected, layer, decode, &intact),
                    "{case}: does not show on this input"
                );
                let report = run(&model, backend, device, &mut injected, decode, ForcedRun::Always);
                let wanted = format!("layer-{layer}/{}", fault.node_name());
                injections += 1;
                let first = report.first.as_ref();
                let hit = !report.passed()
                    && first
                        .is_some_and(|f| f.op == wanted && f.layer == Some(layer) && f.found_by == "forced");
                named += usize::from(hit);
                if !hit {
                    eprintln!("{case}: named {first:?}");
                }
                let free = named_by_free_run(&model, &report);
                free_alarms += usize::from(free.is_some());
                let free_hit = free.as_ref().is_some_and(|ops| ops.contains(&wanted));
                free_named += usize::from(free_hit);
                if !free_hit {
                    println!("  {case}: a free run names {free:?}");
                }
            }
        }
    }
    println!(
        "{name}: {injections} faults; the forced run names {named}; a plain free run raises {free_alarms} alarms and names {free_named}"
    );
    assert!(injections > 0 && named == injections, "{name}: {named} of {injections} faults were named");
}

#[test]
fn every_fault_is_named_on_the_reference() {
    every_fault_is_named("reference");
}

#[test]
fn every_fault_is_named_on_the_cpu() {
    every_fault_is_named("cpu");
}

#[test]
fn every_fault_is_named_on_wgpu() {
    every_fault_is_named("wgpu");
}

#[test]
fn every_fault_is_named_on_cuda() {
    every_fault_is_named("cuda");
}
