//! Every fault is named: op and layer exactly, at the first, a middle and the last layer, in prefill and in decode; and
//! what a comparison of free runs alone would have named.

use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{
    Activations, BackendError, CompileOptions, HostTensor, KvType, Observer, ValueAccess, WeightSource,
    reference::Reference,
};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{Graph, Node};
use moe_run_graph::passes::{Launch, Plan, TapSelection};
use moe_run_inspect::parity::{Against, ForcedRun, Options, Report, Subject, compare};
use moe_run_inspect::taps::Fanout;
use moe_run_inspect::tolerance::Relation;
use moe_run_tests::collect::Collect;
use moe_run_tests::faults::{Fault, Injected};
use moe_run_tests::fixtures;
use moe_run_tests::stages::StageFile;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TOKENS: [u32; 15] = [3070, 303, 198, 354, 294, 220, 17, 10, 17, 30, 3071, 198, 3070, 304, 198];

/// Where faults are injected, and how it runs.
struct Setting {
    backend: moe_run_tests::Subject,
    name: String,
    model: Model,
    tokens: Vec<TokenId>,
    activations: Activations,
    layers: Vec<usize>,
    decode: Vec<bool>,
}

/// What one way of comparing named.
#[derive(Default)]
struct Tally {
    exactly: usize,
    otherwise: usize,
    nothing: usize,
    false_alarms: usize,
}

impl Tally {
    fn count(&mut self, named: Option<&str>, wanted: &str) -> bool {
        let exactly = named == Some(wanted);
        match named {
            _ if exactly => self.exactly += 1,
            Some(_) => self.otherwise += 1,
            None => self.nothing += 1,
        }
        exactly
    }
}

/// What each way of comparing names: a plain comparison of two free runs, parity as it is by default, parity --forced.
fn named(report: &Report) -> [Option<String>; 3] {
    let free = report.stages.iter().any(|s| s.beyond && s.production);
    let plain = free.then(|| named_by_free_run(report)).flatten();
    let forced = report.first.as_ref().map(|f| f.op.clone());
    let default = (free || !report.routing_flips.is_empty()).then(|| forced.clone()).flatten();
    [plain, default, forced]
}

/// The makers of the first stage beyond its limit. States have stages without makers: they are read behind a launch.
fn named_by_free_run(report: &Report) -> Option<String> {
    report.stages.iter().filter(|s| s.beyond && s.production).find_map(|first| {
        let makers = report.ops.iter().filter(|o| o.stage == Some(first.stage) && o.layer == first.layer);
        let names: Vec<&str> = makers.map(|o| o.op.as_str()).collect();
        // A state's rows are shown by the stage of the rotation that feeds it.
        let named = names.into_iter().filter(|n| !n.ends_with("_write")).collect::<Vec<_>>().join(", ");
        (!named.is_empty()).then_some(named)
    })
}

impl Setting {
    fn compile_options(&self) -> CompileOptions {
        CompileOptions {
            device: self.backend.device.clone(),
            activations: Some(self.activations),
            kv_type: KvType::F16,
            ctx_size: 64,
            max_logits_rows: self.tokens.len(),
            micro_batch: Some(self.tokens.len()),
            taps: TapSelection::All,
            ..CompileOptions::default()
        }
    }

    /// A free run of one side, one step's taps after another.
    fn stages(
        &self,
        graph: &Graph,
        weights: &Arc<dyn WeightSource>,
        hook: Option<&mut dyn Observer>,
        decode: bool,
    ) -> Vec<Collect> {
        let executable =
            self.backend.backend.compile(graph, weights.clone(), &self.compile_options()).unwrap();
        let mut session = Session::new(executable).unwrap();
        let mut nothing = Collect::default();
        let hook: &mut dyn Observer = match hook {
            Some(hook) => hook,
            None => &mut nothing,
        };
        let mut steps = Vec::new();
        for chunk in self.tokens.chunks(if decode { 1 } else { self.tokens.len() }) {
            let mut collect = Collect::default();
            // The hook looks at launches only; taps go to both, and Collect refuses a second value of a stage.
            let mut launches = LaunchesOnly(&mut *hook);
            let mut fanout = Fanout { sinks: vec![&mut launches, &mut collect] };
            session.feed(chunk, LogitsRows::All, Some(&mut fanout), |_, _| Ok(())).unwrap();
            steps.push(collect);
        }
        steps
    }

    fn parity(&self, injected: &mut Injected, decode: bool) -> Report {
        let weights: Arc<dyn WeightSource> = self.model.file.clone();
        let subject = Subject {
            backend: self.backend.backend.as_ref(),
            graph: &injected.graph,
            weights: injected.weights.clone(),
            hook: injected.hook.as_mut().map(|h| h as &mut dyn Observer),
        };
        let options = Options {
            tokens: self.tokens.clone(),
            decode_tokens: if decode { self.tokens.len() - 1 } else { 0 },
            forced: ForcedRun::Always,
            compile: CompileOptions { taps: TapSelection::None, micro_batch: None, ..self.compile_options() },
            saved_relation: Relation::Same,
            model: None,
        };
        compare(&self.model.graph, &weights, subject, Against::Backend(&Reference, None), &options).unwrap()
    }

    fn node(&self, fault: Fault, layer: usize) -> &Node {
        let here = |n: &&Node| n.name == fault.named() && n.layer.is_some_and(|l| l.index() == layer);
        self.model.graph.nodes.iter().find(here).unwrap()
    }

    /// The stages that show a node's outputs.
    fn shown(&self, node: &Node) -> Vec<String> {
        let taps = self.model.graph.taps();
        taps.filter(|(tap, _)| tap.inputs.iter().any(|v| node.outputs.contains(v)))
            .map(|(tap, stage)| stage.path(tap.layer.map(|l| l.index())))
            .collect()
    }

    /// Whether the fault changes its own op's output on this input (what is before it is intact, so its inputs are
    /// equal), and whether the difference goes on through the rest of its launch and beyond: the last logits differ.
    fn shows(&self, fault: Fault, injected: &mut Injected, layer: usize, decode: bool, intact: &[Collect]) {
        let hook = injected.hook.as_mut().map(|h| h as &mut dyn Observer);
        let broken = self.stages(&injected.graph, &injected.weights, hook, decode);
        let differs = |stage: &String| {
            intact.iter().zip(&broken).any(|(a, b)| bits(&a.values[stage]) != bits(&b.values[stage]))
        };
        let case = format!("{} {fault:?} layer {layer}", self.name);
        let own = self.shown(self.node(fault, layer));
        assert!(own.iter().any(differs), "{case}: does not show on this input");
        for stage in [format!("layer-{layer}/post_ffn_residual"), "lm_head".into()] {
            assert!(differs(&stage), "{case}: does not reach {stage}");
        }
    }

    /// Injects every fault of a list; the reference is the other side. What it counts is printed, and returned for each
    /// way of comparing.
    fn survey(&self, faults: &[Fault]) -> (usize, [Tally; 3]) {
        let started = Instant::now();
        let weights: Arc<dyn WeightSource> = self.model.file.clone();
        let (mut injections, mut tallies) = (0, [(); 3].map(|()| Tally::default()));
        for &decode in &self.decode {
            let intact = self.stages(&self.model.graph, &weights, None, decode);
            let mut whole =
                Injected { graph: self.model.graph.clone(), weights: weights.clone(), hook: None };
            for (named, tally) in named(&self.parity(&mut whole, decode)).iter().zip(&mut tallies) {
                tally.false_alarms += usize::from(named.is_some());
            }
            for &fault in faults {
                for &layer in &self.layers {
                    // The expert that the last token wants most.
                    let ids = &intact.last().unwrap().values[&format!("layer-{layer}/moe_topk_ids")];
                    let routed = ids.data.to_f32()[ids.data.len() - ids.shape[1]] as usize;
                    let mut injected = fault.inject(&self.model.graph, &weights, layer, routed).unwrap();
                    self.shows(fault, &mut injected, layer, decode, &intact);
                    let report = self.parity(&mut injected, decode);
                    let wanted = format!("layer-{layer}/{}", fault.named());
                    injections += 1;
                    let step = if decode { "decode" } else { "prefill" };
                    let ways = ["a free run", "parity", "parity --forced"];
                    for ((way, named), tally) in ways.iter().zip(named(&report)).zip(&mut tallies) {
                        if !tally.count(named.as_deref(), &wanted) {
                            println!("  {fault:?} layer {layer} {step}: {way} names {named:?}");
                        }
                    }
                }
            }
        }
        println!(
            "{}: {injections} faults, {} intact runs, {:.1?}",
            self.name,
            self.decode.len(),
            started.elapsed()
        );
        for (way, tally) in ["two free runs alone", "parity (forced after a divergence)", "parity --forced"]
            .iter()
            .zip(&tallies)
        {
            println!(
                "  {way:35} names {:3} exactly, {:3} otherwise, {:3} not at all; false alarms {}",
                tally.exactly, tally.otherwise, tally.nothing, tally.false_alarms
            );
        }
        (injections, tallies)
    }

    /// By parity with a forced run; and, where both sides are defined to the bit, by two free runs alone.
    fn every_fault_is_named(&self, faults: &[Fault]) {
        let (injections, [plain, default, forced]) = self.survey(faults);
        assert!(injections > 0 && forced.exactly == injections, "{}: not all faults were named", self.name);
        if self.backend.backend.has_reference_bits() && self.activations == Activations::Q8 {
            assert_eq!(
                (plain.exactly, default.exactly),
                (injections, injections),
                "{}: free runs",
                self.name
            );
        }
        for way in [plain, default, forced] {
            assert_eq!(way.false_alarms, 0, "{}: an intact run was called wrong", self.name);
        }
    }
}

fn bits(tensor: &HostTensor) -> Vec<u32> {
    tensor.data.to_f32().iter().map(|x| x.to_bits()).collect()
}

struct LaunchesOnly<'a>(&'a mut dyn Observer);

impl Observer for LaunchesOnly<'_> {
    fn before_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        self.0.before_launch(plan, launch, values)
    }

    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        elapsed: Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        self.0.after_launch(plan, launch, elapsed, values)
    }
}

/// Every layer that is wanted of a model: the first, a middle one and the last.
fn layers(model: &Model) -> Vec<usize> {
    let last = model.graph.num_layers - 1;
    let mut layers = vec![0, last / 2, last];
    layers.dedup();
    layers
}

fn setting(name: &str, model: &Path, tokens: &[TokenId], activations: Activations) -> Option<Setting> {
    let Some(backend) = moe_run_tests::every_subject().into_iter().find(|s| s.backend.name() == name) else {
        eprintln!("SKIPPED: backend {name} is not in this build, or has no device here");
        return None;
    };
    let model = Model::open(model).unwrap();
    let name =
        format!("{name}, {activations}, {}", model.file.metadata().origin().rsplit('/').next().unwrap());
    let (tokens, layers) = (tokens.to_vec(), layers(&model));
    Some(Setting { backend, name, model, tokens, activations, layers, decode: vec![false, true] })
}

fn every_fault_is_named_on_tiny(name: &str, activations: Activations) {
    if let Some(setting) = setting(name, &fixtures::tiny_q4_k_m(), &TOKENS.map(TokenId), activations) {
        setting.every_fault_is_named(Fault::ALL);
    }
}

#[test]
fn every_fault_is_named_on_the_reference() {
    every_fault_is_named_on_tiny("reference", Activations::F32);
}

#[test]
fn every_fault_is_named_on_the_cpu() {
    every_fault_is_named_on_tiny("cpu", Activations::F32);
}

#[test]
fn every_fault_is_named_on_the_cpu_with_8_bit_activations() {
    every_fault_is_named_on_tiny("cpu", Activations::Q8);
}

/// Latent attention, and experts that are chosen by groups: in layers with experts.
#[test]
fn every_fault_of_latent_attention_is_named() {
    let model = fixtures::find("arch/deepseek2/v3.gguf").expect("carried");
    let stages = fixtures::find("arch/deepseek2/v3.stages.safetensors").expect("carried");
    let tokens = StageFile::read(&stages).tokens;
    for name in ["reference", "cpu"] {
        if let Some(mut setting) = setting(name, &model, &tokens, Activations::F32) {
            setting.layers = vec![1, 2];
            setting.every_fault_is_named(Fault::LATENT);
        }
    }
}

/// A model with recurrent layers: both faults in both of them.
#[test]
fn every_fault_is_named_in_recurrent_layers() {
    let stems: &[&str] = match fixtures::full() {
        true => &["qwen3next/small-fused-q8_0", "qwen35moe/small-q4_k_m"],
        false => &["qwen3next/small-fused-q8_0"],
    };
    for stem in stems {
        let Some(model) = fixtures::find(&format!("arch/{stem}.gguf")) else { continue };
        let Some(stages) = fixtures::find(&format!("arch/{stem}.stages.safetensors")) else { continue };
        let tokens = StageFile::read(&stages).tokens;
        for (name, activations) in
            [("reference", Activations::F32), ("cpu", Activations::F32), ("cpu", Activations::Q8)]
        {
            if let Some(mut setting) = setting(name, &model, &tokens[..12], activations) {
                setting.layers = vec![0, 1];
                setting.every_fault_is_named(Fault::HYBRID);
            }
        }
    }
}

/// Faults of what single models have, in the layers that have it: a fixture, its tokens, layers and faults, and whether the
/// prompt at once is compared too.
fn every_fault_of(stem: &str, layers: &[usize], faults: &[Fault], whole_prompt: bool) {
    let model = fixtures::find(&format!("arch/{stem}.gguf")).expect("carried");
    let stages = fixtures::find(&format!("arch/{stem}.stages.safetensors")).expect("carried");
    let tokens = StageFile::read(&stages).tokens;
    for (name, activations) in
        [("reference", Activations::F32), ("cpu", Activations::F32), ("cpu", Activations::Q8)]
    {
        if let Some(mut setting) = setting(name, &model, &tokens[..tokens.len().min(16)], activations) {
            setting.layers = layers.to_vec();
            if !whole_prompt {
                setting.decode = vec![true];
            }
            setting.every_fault_is_named(faults);
        }
    }
}

/// The layers of gpt-oss take turns: the even ones have windows.
#[test]
fn sinks_and_windows_that_are_wrong_are_named() {
    every_fault_of("gpt-oss/mxfp4", &[0], Fault::SINKS, true);
    every_fault_of("gpt-oss/mxfp4", &[1], &[Fault::SinkLeftOut], true);
}

#[test]
fn a_selection_bias_in_the_weights_is_named() {
    every_fault_of("glm4moe/air", &[1, 2], &[Fault::SelectionBiasInWeights], true);
}

#[test]
fn a_residual_scale_left_out_is_named() {
    every_fault_of("granitemoe/shared", &[0], &[Fault::SkippedResidualScale], true);
}

/// A step of one token is a chunk as well: what is lost at its border is lost at any.
#[test]
fn states_that_are_not_carried_over_a_border_are_named() {
    every_fault_of("qwen35moe/small-f16", &[0, 1], Fault::CARRIED, false);
    every_fault_of("granitehybrid/small-f16", &[0, 1], &[Fault::ScanStateLost, Fault::ConvStateLost], false);
}

/// The one layer of the carried model that has an indexer; four positions make an entry, so a state that is lost shows.
#[test]
fn every_fault_of_compressed_attention_is_named() {
    every_fault_of("deepseek4/tiny", &[1], Fault::COMPRESSED, true);
    every_fault_of("deepseek4/tiny", &[1], &[Fault::WindowStateLost], false);
}

/// Faults at the beginning, inside and at the end of groups, by a hook and by altered weights.
const GROUPED: [Fault; 6] = [
    Fault::DroppedExpert,
    Fault::WrongExpert,
    Fault::SkippedKNorm,
    Fault::SwappedScaleNibble,
    Fault::CausalOffByOne,
    Fault::NanLane,
];

/// Micro models: another head size, more experts, several formats. GPUs in software are slow, so that without --full they
/// get some faults in tiny's last layer and a few tokens one by one: that is where they run groups.
fn every_fault_is_named_on_a_gpu(name: &str) {
    let tokens: Vec<TokenId> = TOKENS.map(TokenId).into();
    let Some(mut short) = setting(name, &fixtures::tiny_q4_k_m(), &tokens[..3], Activations::F32) else {
        return;
    };
    if !fixtures::full() && short.backend.in_software() {
        (short.layers, short.decode) = (vec![short.model.graph.num_layers - 1], vec![true]);
        return short.every_fault_is_named(&GROUPED);
    }
    for (stem, model, stages) in fixtures::micro_models() {
        if !stem.starts_with("mixed") && !stem.starts_with("wide") {
            continue;
        }
        let tokens = StageFile::read(&stages).tokens;
        // 100 more than wide's base of 1e7 turns the first positions by less than a float's last bit.
        let far = stem.starts_with("wide");
        let near = |fault: &&Fault| !(far && **fault == Fault::RopeBase);
        let faults: Vec<Fault> = Fault::ALL.iter().filter(near).copied().collect();
        let many: Vec<TokenId> = tokens.iter().cycle().take(64).copied().collect();
        for activations in [Activations::F32, Activations::Q8] {
            if let Some(setting) = setting(name, &model, &tokens[..6], activations) {
                setting.every_fault_is_named(&faults);
            }
            if far && let Some(setting) = setting(name, &model, &many, activations) {
                setting.every_fault_is_named(&[Fault::RopeBase]);
            }
        }
    }
}

#[test]
fn every_fault_is_named_on_wgpu() {
    every_fault_is_named_on_a_gpu("wgpu");
}

#[test]
fn every_fault_is_named_on_cuda() {
    every_fault_is_named_on_a_gpu("cuda");
}
