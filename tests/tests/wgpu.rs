//! The wgpu backend's decode, whose launches hold many nodes: against the stage files, with and without taps, with every
//! optional feature off, and with every tensor split. Mesa's software Vulkan is enough; without any adapter all is skipped.

use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::wgpu::{Features, Wgpu, WgpuOptions};
use moe_run_backends::{
    Activations, Backend, BackendError, CompileOptions, HostTensor, KvType, Observer, TapValue,
};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::passes::TapSelection;
use moe_run_tests::stages::StageFile;
use moe_run_tests::{fixtures, relative_l2};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// As for the other fast backends: f32 sums over up to 512 products a row.
const TOLERANCE: f64 = 1e-3;

fn has_adapter() -> bool {
    let found = Wgpu::default().devices().is_ok();
    if !found {
        eprintln!("SKIPPED: no wgpu adapter; install mesa-vulkan-drivers");
    }
    found
}

fn plain() -> Wgpu {
    Wgpu {
        options: WgpuOptions { allowed: Features::default(), timestamps: false, ..WgpuOptions::default() },
    }
}

fn split(max_tensor_bytes: u64) -> Wgpu {
    Wgpu { options: WgpuOptions { max_tensor_bytes: Some(max_tensor_bytes), ..WgpuOptions::default() } }
}

fn models() -> Vec<(&'static str, PathBuf, PathBuf)> {
    fixtures::micro_models().into_iter().chain(fixtures::tiny_models()).collect()
}

/// Every tap of every step, in the order of the steps.
#[derive(Default)]
struct Collect {
    values: BTreeMap<String, Vec<HostTensor>>,
}

impl Observer for Collect {
    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        self.values.entry(tap.stage.path(tap.layer)).or_default().push(tap.tensor.clone());
        Ok(())
    }
}

fn session(backend: &Wgpu, model: &Model, options: &CompileOptions) -> Session {
    Session::new(backend.compile(&model.graph, model.file.clone(), options).unwrap()).unwrap()
}

fn f32_options(ctx_size: usize) -> CompileOptions {
    CompileOptions {
        activations: Some(Activations::F32),
        kv_type: KvType::F32,
        ctx_size,
        ..CompileOptions::default()
    }
}

/// Runs the prompt token by token and compares every stage of every position.
fn decode_matches(backend: &Wgpu, models: &[(&'static str, PathBuf, PathBuf)]) {
    for (stem, model, stages) in models {
        let model = Model::open(model).unwrap();
        let wanted = StageFile::read(stages);
        let tokens = &wanted.tokens;
        let options = CompileOptions { taps: TapSelection::All, ..f32_options(tokens.len()) };
        let mut session = session(backend, &model, &options);
        let mut found = Collect::default();
        for token in tokens {
            session.decode(*token, Some(&mut found)).unwrap();
        }
        for (path, (shape, values)) in &wanted.values {
            let steps = &found.values[path];
            assert_eq!(steps.len(), tokens.len(), "{stem}: steps of {path}");
            for (t, step) in steps.iter().enumerate() {
                let wanted = row(shape, values, t);
                let data = step.data.to_f32();
                if path.ends_with("moe_topk_ids") {
                    assert_eq!(data, wanted, "{stem}: {path}, position {t}");
                } else {
                    let distance = relative_l2(&data, &wanted);
                    assert!(distance <= TOLERANCE, "{stem}: {path}, position {t}: {distance:.3e}");
                }
            }
        }
    }
}

/// What position `t` has of a stage's value: [T, ..], or [H, T, S] of the first t + 1 positions.
fn row(shape: &[usize], values: &[f32], t: usize) -> Vec<f32> {
    match *shape {
        [heads, tokens, cached] if tokens == cached && heads != tokens || is_square(shape) => {
            (0..heads).flat_map(|h| values[(h * tokens + t) * cached..][..t + 1].to_vec()).collect()
        }
        _ => {
            let width = values.len() / shape[0];
            values[t * width..(t + 1) * width].to_vec()
        }
    }
}

/// [H, T, S] with H = T = S; no other stage of the fixtures has three equal axes.
fn is_square(shape: &[usize]) -> bool {
    shape.len() == 3 && shape[0] == shape[1] && shape[1] == shape[2]
}

#[test]
fn decode_matches_the_stage_files() {
    if has_adapter() {
        decode_matches(&Wgpu::default(), &models());
    }
}

#[test]
fn decode_matches_the_stage_files_without_optional_features() {
    if has_adapter() {
        let some: Vec<_> = models().into_iter().filter(|(s, ..)| !s.starts_with("zoo-q")).collect();
        decode_matches(&plain(), &some);
    }
}

#[test]
fn decode_matches_the_stage_files_with_split_tensors() {
    if has_adapter() {
        // Less than any matrix of these models.
        let some: Vec<_> = models().into_iter().filter(|(s, ..)| !s.starts_with("zoo-q")).collect();
        decode_matches(&split(8192), &some);
    }
}

/// Logits of a prompt and of four tokens behind it.
fn logits(backend: &Wgpu, model: &Model, options: &CompileOptions, tokens: &[TokenId]) -> Vec<Vec<u32>> {
    let mut session = session(backend, model, options);
    let mut all = Vec::new();
    let mut out = Vec::new();
    let mut collect = Collect::default();
    let watched = !options.taps.is_empty();
    let (prompt, rest) = tokens.split_at(tokens.len() - 4);
    let observer: Option<&mut dyn Observer> = if watched { Some(&mut collect) } else { None };
    session.feed(prompt, LogitsRows::Last, observer, |_, _| Ok(())).unwrap();
    session.logits(&mut out).unwrap();
    all.push(out.iter().map(|x| x.to_bits()).collect());
    for token in rest {
        let observer: Option<&mut dyn Observer> = if watched { Some(&mut collect) } else { None };
        session.decode(*token, observer).unwrap();
        session.logits(&mut out).unwrap();
        all.push(out.iter().map(|x| x.to_bits()).collect());
    }
    assert_eq!(watched, !collect.values.is_empty());
    all
}

#[test]
fn taps_change_no_bit() {
    if !has_adapter() {
        return;
    }
    for (stem, model, stages) in
        fixtures::tiny_models().into_iter().chain(fixtures::micro_models().into_iter().take(2))
    {
        let model = Model::open(&model).unwrap();
        let tokens = StageFile::read(&stages).tokens;
        for activations in [Activations::Q8, Activations::F32] {
            let options =
                CompileOptions { activations: Some(activations), ctx_size: 64, ..CompileOptions::default() };
            let tapped = CompileOptions { taps: TapSelection::All, ..options.clone() };
            let backend = Wgpu::default();
            assert_eq!(
                logits(&backend, &model, &options, &tokens),
                logits(&backend, &model, &tapped, &tokens),
                "{stem}, {activations}"
            );
        }
    }
}

/// A long cache is split over workgroups, and the parts merged.
#[test]
fn long_caches_agree_with_the_reference() {
    if !has_adapter() {
        return;
    }
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let tokens: Vec<TokenId> = (0..300).map(|i| TokenId(7 + (i * 37) % 3000)).collect();
    for kv_type in [KvType::F16, KvType::Q8_0] {
        let options = CompileOptions { kv_type, ..f32_options(301) };
        let run = |backend: &dyn Backend| {
            let executable = backend.compile(&model.graph, model.file.clone(), &options).unwrap();
            let mut session = Session::new(executable).unwrap();
            session.feed(&tokens, LogitsRows::Last, None, |_, _| Ok(())).unwrap();
            session.decode(TokenId(5), None).unwrap();
            let mut out = Vec::new();
            session.logits(&mut out).unwrap();
            out
        };
        let distance = relative_l2(&run(&Wgpu::default()), &run(&moe_run_backends::reference::Reference));
        // A last-bit difference before the cache's rounding moves its entries a step now and then.
        assert!(distance <= TOLERANCE, "{kv_type}: {distance:.3e}");
    }
}

/// One compute pass and at most seven dispatches a layer.
#[test]
fn a_decode_layer_takes_at_most_seven_dispatches() {
    let backend = Wgpu::default();
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let options = moe_run_graph::passes::PlanOptions {
        taps: &TapSelection::None,
        patterns: &backend.patterns(1),
        max_sizes: moe_run_graph::ir::StepSizes { tokens: 1, logits_rows: 1, cached: 4096 },
    };
    let plan = moe_run_graph::passes::plan(&model.graph, &options).unwrap();
    let mut dispatches = BTreeMap::new();
    for launch in &plan.launches {
        let kernel = backend.kernel(&plan, launch).unwrap();
        assert!(kernel.source.unwrap().contains("@compute"));
        *dispatches.entry(launch.layer.map(|l| l.index())).or_insert(0) += kernel.name.matches('[').count();
    }
    for layer in 0..model.config.num_hidden_layers {
        let found = dispatches[&Some(layer)];
        assert!((1..=7).contains(&found), "layer {layer}: {found} dispatches");
    }
}
