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
        self.values.entry(tap.stage.path(tap.layer)).or_default().push(tap.tensor.to_tensor());
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

/// Limits at which some tensors are in parts and others whole: what is whole stays in its fused launches, and every matrix
/// is in parts at one of them.
#[test]
fn fused_launches_stand_beside_split_tensors() {
    if !has_adapter() {
        return;
    }
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let tokens = [3070, 303, 198, 354, 294, 220, 17, 10].map(TokenId);
    // The launches of a token, and the logits of a prompt and of tokens behind it.
    let run = |backend: &Wgpu| -> (Vec<&'static str>, Vec<f32>) {
        let mut session = session(backend, &model, &f32_options(16));
        let launches = session.executable().plan(1).launches.iter().map(|l| l.pattern).collect();
        let (mut all, mut out) = (Vec::new(), Vec::new());
        session.feed(&tokens[..6], LogitsRows::Last, None, |_, _| Ok(())).unwrap();
        for token in &tokens[6..] {
            session.logits(&mut out).unwrap();
            all.extend_from_slice(&out);
            session.decode(*token, None).unwrap();
        }
        session.logits(&mut out).unwrap();
        all.extend_from_slice(&out);
        (launches, all)
    };
    let (launches, whole) = run(&Wgpu::default());
    let fused =
        ["norm_qkv", "attention_step", "matmul_residual", "norm_router", "route_gate_up", "down_combine"];
    let count = |patterns: &[&str]| patterns.iter().filter(|p| fused.contains(p)).count();
    let all = count(&launches);
    let mut counts = Vec::new();
    // Less than the experts' tensors, less than most projections, less than the router's.
    for max_tensor_bytes in [300_000, 60_000, 4_096] {
        let (launches, found) = run(&split(max_tensor_bytes));
        counts.push(count(&launches));
        // Sums are the same, but a fused launch may take its lanes in another order.
        let distance = relative_l2(&found, &whole);
        assert!(distance <= 1e-5, "{max_tensor_bytes} bytes: {distance:.3e}");
    }
    assert!(counts.is_sorted_by(|a, b| a >= b) && counts[0] > 0 && counts[0] <= all, "{counts:?} of {all}");
    // Only attention's launch reads no matrix.
    assert_eq!(*counts.last().unwrap(), model.config.num_hidden_layers, "{counts:?} of {all}");
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
    // A software adapter takes a minute a model: one of the tiny ones, and all with --full.
    let tiny = if fixtures::full() { usize::MAX } else { 1 };
    let models = fixtures::tiny_models().into_iter().take(tiny);
    for (stem, model, stages) in models.chain(fixtures::micro_models().into_iter().take(2)) {
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

/// Score taps of a large context are beyond a software adapter's largest buffer: the micro-batch shrinks by itself, and is
/// refused where it was asked for.
#[test]
fn taps_of_a_large_context_fit_by_smaller_micro_batches() {
    if !has_adapter() {
        return;
    }
    let (_, path, stages) = fixtures::micro_models().swap_remove(0);
    let model = Model::open(&path).unwrap();
    let tokens = StageFile::read(&stages).tokens;
    let small = CompileOptions { taps: TapSelection::All, ..f32_options(128) };
    let large = CompileOptions { ctx_size: 1 << 16, ..small.clone() };
    let backend = Wgpu::default();
    let run = |options| -> Vec<f32> {
        logits(&backend, &model, options, &tokens).concat().into_iter().map(f32::from_bits).collect()
    };
    let distance = relative_l2(&run(&large), &run(&small));
    assert!(distance <= TOLERANCE, "{distance:.3e}");

    let compile = |options: &CompileOptions| backend.compile(&model.graph, model.file.clone(), options);
    let asked = CompileOptions { micro_batch: Some(4096), ..large };
    match compile(&asked) {
        Err(BackendError::OutOfMemory { advice, .. }) => assert!(advice.contains("micro-batch"), "{advice}"),
        Err(other) => panic!("{other}"),
        Ok(executable) => assert_eq!(executable.info().micro_batch, 4096, "an adapter with larger buffers"),
    }
}

/// One compute pass and at most seven dispatches a layer.
#[test]
fn a_decode_layer_takes_at_most_seven_dispatches() {
    let backend = Wgpu::default();
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let options = moe_run_graph::passes::PlanOptions {
        taps: &TapSelection::None,
        patterns: &backend.patterns(1, &CompileOptions::default()),
        alone: &moe_run_graph::passes::none_alone,
        max_sizes: moe_run_graph::ir::StepSizes { tokens: 1, logits_rows: 1, cached: 4096 },
    };
    let plan = moe_run_graph::passes::plan(&model.graph, &options).unwrap();
    let mut dispatches = BTreeMap::new();
    for launch in &plan.launches {
        let kernel = backend.kernel(&plan, launch, &CompileOptions::default()).unwrap();
        let in_source = kernel.source.unwrap().matches("@compute").count();
        assert_eq!(kernel.dispatches, Some(in_source), "{}", kernel.name);
        *dispatches.entry(launch.layer.map(|l| l.index())).or_insert(0) += in_source;
    }
    for layer in 0..model.config.num_hidden_layers {
        let found = dispatches[&Some(layer)];
        assert!((1..=7).contains(&found), "layer {layer}: {found} dispatches");
    }
    let args = ["graph", "--backend", "wgpu", "--level", "plan"];
    let printed = moe_run_tests::cli::run(env!("CARGO_BIN_EXE_moe-run-under-test"), args).succeeded().stdout;
    assert!(printed.contains(", 7 dispatches a layer"), "{printed}");
}

/// A layer of the real shapes, whose embedding and lm_head of 151,936 rows are larger than software Vulkan binds: the plan
/// splits them, and the logits are the CPU's.
#[test]
fn real_shapes_agree_with_the_cpu() {
    if !has_adapter() {
        return;
    }
    if !fixtures::full() {
        println!("SKIPPED: a layer of the real shapes (scripts/test.sh --full runs it)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("one-layer.gguf");
    let args = ["synth", "--preset", "qwen3-coder-30b-a3b", "--layers", "1", "-o", file.to_str().unwrap()];
    let _ = moe_run_tests::cli::run(env!("CARGO_BIN_EXE_moe-run-under-test"), args).succeeded();
    let model = Model::open(&file).unwrap();
    let tokens = [11, 151_935, 70_000, 5, 42].map(TokenId);
    let run = |backend: &dyn Backend| -> (Vec<Vec<f32>>, Vec<&'static str>) {
        let executable = backend.compile(&model.graph, model.file.clone(), &f32_options(16)).unwrap();
        let patterns = executable.plan(1).launches.iter().map(|l| l.pattern).collect();
        let mut session = Session::new(executable).unwrap();
        let (mut all, mut out) = (Vec::new(), Vec::new());
        session.feed(&tokens[..3], LogitsRows::Last, None, |_, _| Ok(())).unwrap();
        session.logits(&mut out).unwrap();
        all.push(out.clone());
        for token in &tokens[3..] {
            session.decode(*token, None).unwrap();
            session.logits(&mut out).unwrap();
            all.push(out.clone());
        }
        (all, patterns)
    };
    let (found, patterns) = run(&split(128 << 20));
    // The layer is fused all the same.
    assert!(patterns.contains(&"route_gate_up") && patterns.contains(&"matmul"), "{patterns:?}");
    let (wanted, _) = run(&moe_run_backends::cpu::Cpu);
    for (step, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        assert_eq!(found.len(), 151_936);
        let distance = relative_l2(found, wanted);
        println!("step {step}: relative L2 {distance:.1e}");
        assert!(distance <= TOLERANCE, "step {step}: {distance:.3e}");
    }
}

/// GPUs have subgroups of 4 to 128 lanes. Software Vulkan takes the vector width that it is told to: with 128 bits they are
/// of 4, with 512 of 16 (where every other test has 8).
#[test]
fn subgroups_of_other_sizes_give_the_same_answer() {
    for (bits, lanes) in [("128", "of 4 lanes"), ("512", "of 16 lanes")] {
        let run = |args: &[&str]| {
            let program = env!("CARGO_BIN_EXE_moe-run-under-test");
            let mut command = std::process::Command::new(program);
            let output = command.args(args).env("LP_NATIVE_VECTOR_WIDTH", bits).output().unwrap();
            moe_run_tests::cli::finish(output).succeeded().stdout
        };
        if !run(&["devices"]).contains(lanes) {
            println!("SKIPPED: no software Vulkan whose subgroups can be {lanes}");
            return;
        }
        let device = ["--backend", "wgpu", "--device", "llvmpipe"];
        let greedy = ["run", "-p", "What is 2+2?", "--temp", "0"];
        assert_eq!(run(&[&greedy[..], &device[..]].concat()).trim(), "2 + 2 = 4", "{lanes}");
        if fixtures::full() {
            let _ = run(&[&["selftest"][..], &device[..]].concat());
        }
    }
}

/// A conversation: the second question keeps the cache of the first, past the step that was queued for its end.
#[test]
fn a_chat_keeps_what_it_has_evaluated() {
    if !has_adapter() {
        return;
    }
    let chat = |backend: &str| {
        let args = ["chat", "--backend", backend, "--temp", "0"];
        let input = b"What is 2+2?\nWhat is the capital of France?\n";
        moe_run_tests::cli::run_with_input(env!("CARGO_BIN_EXE_moe-run-under-test"), args, input).succeeded()
    };
    let (found, wanted) = (chat("wgpu"), chat("cpu"));
    assert_eq!(found.stdout, wanted.stdout);
    assert!(found.stdout.contains("2 + 2 = 4") && found.stdout.contains("Paris"), "{found:?}");
    let kept = |finished: &moe_run_tests::cli::Finished| {
        finished.stderr.lines().filter(|l| l.contains(" kept tokens")).count()
    };
    assert_eq!((kept(&found), kept(&wanted)), (1, 1), "{found:?}");
}
