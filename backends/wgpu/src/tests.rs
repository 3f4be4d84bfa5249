//! The op cases under every set of optional features, split tensors, and what must fail in which words.
//!
//! They need an adapter; Mesa's software Vulkan is enough. A machine without any skips them loudly.

#[path = "../../../tests/src/loaded_once.rs"]
mod loaded_once;

use super::weights::WgpuWeights;
use super::{Faults, Features, Wgpu, WgpuOptions};
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{DType, Dim, Graph, Op, Shape, ValueId, WeightHome, WeightSlice};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::Format;
use moe_run_inspect::cases::{self, OPS};
use moe_run_reference::Reference;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    Activations, Backend, CompileOptions, HostTensor, KvType, MAX_CANDIDATES, Observer, StepInput,
    StepSequence, StepTokens, ValueAccess, WeightSource, argmax, best_candidates,
};
use moe_run_runtime::session::{LogitsRows, Session};
use moe_run_runtime::sharing::{Opens, Sharing};
use std::sync::Arc;

/// Both sides compute from the same rounded activations and cache; what is left is the order of f32 sums and the last
/// bits of exp, which a softmax over hundreds of positions adds up.
const TOLERANCE: f64 = 2e-5;

fn plain() -> WgpuOptions {
    WgpuOptions { allowed: Features::default(), timestamps: false, ..WgpuOptions::default() }
}

fn has_adapter() -> bool {
    let found = Wgpu::default().devices().is_ok();
    if !found {
        eprintln!("SKIPPED: no wgpu adapter; install mesa-vulkan-drivers");
    }
    found
}

/// A backend whose cases share a device.
fn shared(options: WgpuOptions) -> Box<dyn Backend> {
    Wgpu { options }.sharing().expect("wgpu shares its device")
}

/// The weights of a graph on a device of their own.
fn loaded(graph: &Graph, source: &dyn WeightSource, options: &CompileOptions) -> WgpuWeights {
    super::load::load(&|| Wgpu::default().open(None), graph, source, options).unwrap()
}

/// Runs a case on the backend and the reference; `with` says what is used.
fn check(
    backend: &dyn Backend,
    with: &WgpuOptions,
    op: &str,
    format: Format,
    seed: u64,
    options: &CompileOptions,
) {
    let case = cases::case(op, format, seed).unwrap().unwrap();
    let found = match cases::run(&case, backend, options) {
        Ok(found) => found,
        Err(error) if cases::is_refusal(&error) => return,
        Err(error) => panic!("{}: {error}", case.name),
    };
    let wanted = cases::run(&case, &Reference, options).unwrap();
    assert_eq!(found.len(), wanted.len(), "{}", case.name);
    for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        let distance = cases::distance(found, wanted);
        assert!(
            distance <= TOLERANCE,
            "{} with {:?}, kv {}: result {i}: relative L2 {distance:.3e}",
            case.name,
            with,
            options.kv_type
        );
    }
}

fn options(activations: Activations, kv_type: KvType) -> CompileOptions {
    CompileOptions { activations: Some(activations), kv_type, ..CompileOptions::default() }
}

/// All off, and each by itself: whatever an adapter lacks, the results are the same.
#[test]
fn every_op_is_right_under_every_feature() {
    if !has_adapter() {
        return;
    }
    let sets = [
        Features::default(),
        Features { subgroups: true, ..Features::default() },
        Features { f16: true, ..Features::default() },
        Features { dot4: true, ..Features::default() },
    ];
    for allowed in sets {
        let with = WgpuOptions { allowed, ..plain() };
        let backend = shared(with);
        for op in OPS {
            for seed in 0..3 {
                let format = Format::ALL[(seed as usize * 7 + op.len()) % Format::ALL.len()];
                let format = if cases::takes_formats(op) { format } else { Format::F32 };
                let kv_type = KvType::ALL[seed as usize % KvType::ALL.len()];
                let kv_type = if op.starts_with("attention") { kv_type } else { KvType::F32 };
                check(backend.as_ref(), &with, op, format, seed, &options(Activations::Q8, kv_type));
            }
        }
    }
}

/// Every tensor in several parts: at most four rows of the widest case fit into one.
#[test]
fn split_tensors_give_the_same() {
    if !has_adapter() {
        return;
    }
    let with = WgpuOptions { max_tensor_bytes: Some(16384), ..WgpuOptions::default() };
    let backend = shared(with);
    for (i, format) in Format::ALL.into_iter().enumerate() {
        for op in ["embed", "matmul", "expert_matmul"] {
            check(backend.as_ref(), &with, op, format, 10 + i as u64, &options(Activations::Q8, KvType::F32));
        }
    }
}

/// More rows than a dispatch has workgroups along one axis for, as in vocabularies of 262,144: with a token and with tiles.
#[test]
fn more_rows_than_an_axis_holds_are_all_multiplied() {
    if !has_adapter() {
        return;
    }
    const ROWS: usize = 4 * 65_535 + 9;
    for tokens in [1, 9] {
        let mut graph = Graph::new();
        let tensor = graph.add_weight("weight", vec![ROWS, 32], Format::Q8_0);
        let weight = WeightSlice { tensor, rows: 0..ROWS, experts: None, home: WeightHome::Device };
        let x = graph.add_boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(32)]), DType::F32);
        graph.outputs =
            graph.push(None, "proj", Op::MatMul { weight, bias: None, scale: None }, &[x]).unwrap();
        // A scale of 2⁻⁶ and quants that differ from row to row.
        let row = |r: usize| {
            let quants = (0..32).map(move |i| ((r * 31 + i * 7) % 251) as u8);
            [0x00, 0x24].into_iter().chain(quants)
        };
        let bytes: Vec<u8> = (0..ROWS).flat_map(row).collect();
        let values = (0..tokens * 32).map(|i| (i as f32 * 0.37).sin()).collect();
        let case = cases::OpCase {
            name: format!("matmul of {ROWS} rows, {tokens} tokens"),
            graph,
            weights: Arc::new(std::collections::HashMap::from([("weight".to_owned(), bytes)])),
            steps: vec![cases::CaseStep {
                first_position: 0,
                tokens: vec![TokenId(0); tokens],
                logits_rows: Vec::new(),
                boundary: vec![(x, HostTensor::f32(vec![tokens, 32], values))],
            }],
            ctx_size: 16,
        };
        let options = CompileOptions { micro_batch: Some(tokens), ..options(Activations::F32, KvType::F32) };
        let found = cases::run(&case, &Wgpu::default(), &options).unwrap();
        let wanted = cases::run(&case, &Reference, &options).unwrap();
        let distance = cases::distance(&found[0], &wanted[0]);
        assert!(distance <= TOLERANCE, "{}: relative L2 {distance:.3e}", case.name);
    }
}

#[test]
fn a_micro_batch_that_no_dispatch_holds_is_refused() {
    if !has_adapter() {
        return;
    }
    let case = cases::case("add", Format::F32, 0).unwrap().unwrap();
    let options =
        CompileOptions { micro_batch: Some(65_536), ctx_size: 1 << 17, ..CompileOptions::default() };
    let error = Wgpu::default().compile(&case.graph, case.weights.clone(), &options).err().unwrap();
    assert!(
        error.to_string().contains("micro-batch 65536") && error.to_string().contains("65535"),
        "{error}"
    );
}

#[test]
fn an_unknown_device_is_refused_with_the_list() {
    if !has_adapter() {
        return;
    }
    let case = cases::case("add", Format::F32, 0).unwrap().unwrap();
    for name in ["no such adapter", "99"] {
        let options = CompileOptions { device: Some(name.into()), ..CompileOptions::default() };
        let error = Wgpu::default().compile(&case.graph, case.weights.clone(), &options).err().unwrap();
        let text = error.to_string();
        assert!(text.contains(name) && text.contains("0 (") && text.contains("moe-run devices"), "{text}");
    }
}

#[test]
fn a_block_length_that_the_shaders_lack_is_refused() {
    let case = cases::case("add", Format::F32, 0).unwrap().unwrap();
    let options = CompileOptions {
        activations: Some(Activations::Q8),
        q8_super_block: Some(moe_run_graph::quant::ActBlock::X256),
        ..CompileOptions::default()
    };
    let error = Wgpu::default().compile(&case.graph, case.weights.clone(), &options).err().unwrap();
    assert!(error.to_string().contains("wanted 32"), "{error}");
}

#[test]
fn a_cache_that_cannot_be_bound_says_what_would_fit() {
    if !has_adapter() {
        return;
    }
    let case = cases::case("attention", Format::F32, 0).unwrap().unwrap();
    let options = CompileOptions { ctx_size: 1 << 28, ..CompileOptions::default() };
    let executable = Wgpu::default().compile(&case.graph, case.weights.clone(), &options).unwrap();
    let error = executable.new_state().err().unwrap();
    assert!(matches!(error, BackendError::OutOfMemory { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("KV cache") && text.contains("--ctx-size") && text.contains("positions"), "{text}");
}

/// Gives the boundary input before the first launch.
struct Feed(ValueId, HostTensor);

impl Observer for Feed {
    fn before_launch(
        &mut self,
        _plan: &Plan,
        _launch: &Launch,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        values.write(self.0, &self.1)
    }
}

/// The device's choice of the best logits: ties, the largest in any chunk, −∞ everywhere, and a NaN as an error.
#[test]
fn the_choice_on_the_device_is_that_of_the_host() {
    if !has_adapter() {
        return;
    }
    const WIDTH: usize = 5000;
    let mut graph = Graph::new();
    let x = graph.add_boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(WIDTH)]), DType::F32);
    let rows = graph.inputs.logits_rows;
    graph.outputs = graph.push(None, "logits_rows", Op::GetRows, &[x, rows]).unwrap();
    let weights = Arc::new(std::collections::HashMap::new());
    let mut executable = Wgpu::default().compile(&graph, weights, &CompileOptions::default()).unwrap();
    let mut state = executable.new_state().unwrap();
    let mut logits: Vec<Vec<f32>> = (0..6u32)
        .map(|s| {
            (0..WIDTH as u32).map(|i| ((i * 7919 + s * 104_729) % 10_007) as f32 / 100.0 - 60.0).collect()
        })
        .collect();
    logits[1][4999] = 1e9;
    logits[2].fill(f32::NEG_INFINITY);
    logits[3].fill(-0.5);
    logits[3][1500] = 0.0;
    logits[3][1400] = -0.0;
    logits[4][1023] = f32::INFINITY;
    logits[4][1024] = f32::INFINITY;
    logits[5][4321] = f32::NAN;
    for (i, logits) in logits.iter().enumerate() {
        let input = StepInput {
            tokens: StepTokens::Host(&[TokenId(0)]),
            positions: &[i as u32],
            sequence: &[0],
            kv_slots: &[i as u32],
            sequences: &[StepSequence { blocks: &[0], place: 0 }],
            logits_rows: &[0],
        };
        let mut feed = Feed(x, HostTensor::f32(vec![1, WIDTH], logits.clone()));
        executable.step(state.as_mut(), &input, Some(&mut feed)).unwrap();
        match (executable.argmax(0), argmax(logits)) {
            (Ok(found), Ok(wanted)) => assert_eq!(found, wanted, "row {i}"),
            (Err(found), Err(wanted)) => {
                assert_eq!(found.to_string(), wanted.to_string());
                assert!(found.to_string().contains("4321"), "{found}");
            }
            (found, wanted) => panic!("row {i}: {found:?}, wanted {wanted:?}"),
        }
        let (mut found, mut wanted) = (Vec::new(), Vec::new());
        for count in [1, 3, 20, MAX_CANDIDATES] {
            let got = executable.candidates(0, count, &mut found).map_err(|e| e.to_string());
            let want = best_candidates(logits, count, &mut wanted).map_err(|e| e.to_string());
            assert_eq!(got, want, "row {i}, {count} candidates");
            if got.is_ok() {
                assert_eq!(found, wanted, "row {i}, {count} candidates");
            }
        }
    }
}

#[test]
fn a_state_of_another_executable_is_refused() {
    if !has_adapter() {
        return;
    }
    let case = cases::case("add", Format::F32, 0).unwrap().unwrap();
    // On one device, too.
    let backend = Sharing::new(Wgpu::default());
    let compile = || backend.compile(&case.graph, case.weights.clone(), &CompileOptions::default()).unwrap();
    let (mut one, other) = (compile(), compile());
    let input = StepInput {
        tokens: StepTokens::Host(&[TokenId(0)]),
        positions: &[0],
        sequence: &[0],
        kv_slots: &[0],
        sequences: &[StepSequence { blocks: &[0], place: 0 }],
        logits_rows: &[],
    };
    let error = one.step(other.new_state().unwrap().as_mut(), &input, None).unwrap_err();
    assert!(error.to_string().contains("another executable"), "{error}");
}

/// The device is opened once and no shader compiled twice; after a failure the next executable has a device of its own.
#[test]
fn what_shares_a_device_shares_its_shaders() {
    if !has_adapter() {
        return;
    }
    let options = options(Activations::F32, KvType::F16);
    let backend = Sharing::new(Wgpu::default());
    let mut held = Vec::new();
    for op in ["rms_norm", "add", "rms_norm", "add"] {
        let case = cases::case(op, Format::F32, 0).unwrap().unwrap();
        let found = cases::run(&case, &backend, &options).unwrap();
        let wanted = cases::run(&case, &Reference, &options).unwrap();
        let distances = found.iter().zip(&wanted).map(|(f, w)| cases::distance(f, w));
        assert!(distances.fold(0.0, f64::max) <= TOLERANCE, "{op}");
        let opened = backend.opened(None).unwrap();
        held.push((opened.device, opened.pipelines.lock().unwrap().len()));
    }
    assert!(held.iter().all(|(device, _)| Arc::ptr_eq(device, &held[0].0)));
    let compiled: Vec<usize> = held.iter().map(|(_, pipelines)| *pipelines).collect();
    assert!(
        0 < compiled[0] && compiled[0] < compiled[1] && compiled[1..] == [compiled[1]; 3],
        "{compiled:?}"
    );

    let faults = Faults { lost_at_submission: Some(0), ..Faults::default() };
    let failing = Sharing::new(Wgpu { options: WgpuOptions { faults, ..WgpuOptions::default() } });
    let first = failing.opened(None).unwrap();
    let case = cases::case("add", Format::F32, 0).unwrap().unwrap();
    let _ = cases::run(&case, &failing, &options).unwrap_err();
    assert!(!Arc::ptr_eq(&first.device, &failing.opened(None).unwrap().device));
}

/// Counted by the buffers that are made for them.
#[test]
fn weights_are_loaded_once_whatever_is_compiled() {
    if !has_adapter() {
        return;
    }
    let backend = Sharing::new(Wgpu::default());
    let device = backend.opened(None).unwrap().device;
    loaded_once::check(&backend, &|| device.weight_bytes.load(std::sync::atomic::Ordering::Relaxed));
}

/// Greedy decode: one submission with one compute pass a token, and nothing read back but the token.
#[test]
fn a_token_is_one_pass_and_one_submission() {
    if !has_adapter() {
        return;
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/models/tiny-qwen3moe-q4_k_m.gguf");
    let model = moe_run_graph::Model::open(std::path::Path::new(path)).unwrap();
    let options = CompileOptions { ctx_size: 64, ..CompileOptions::default() };
    let executable =
        loaded(&model.graph, model.file.as_ref(), &options).executable(&model.graph, &options).unwrap();
    let device = executable.recorder().device.clone();
    let count = || {
        let load = |n: &std::sync::atomic::AtomicU64| n.load(std::sync::atomic::Ordering::Relaxed);
        (load(&device.submissions), load(&device.passes), load(&device.bytes_read_back))
    };
    let mut session = Session::new(Box::new(executable)).unwrap();
    session.feed(&[TokenId(5), TokenId(6)], LogitsRows::Last, None, |_, _| Ok(())).unwrap();
    let ahead = || device.steps_encoded_ahead.load(std::sync::atomic::Ordering::Relaxed);
    for sampled in [None, Some(20)] {
        let ahead_before = ahead();
        session.executable().expect_candidates(sampled.unwrap_or(1));
        let mut best = Vec::new();
        session.decode(TokenId(7), None).unwrap();
        let before = count();
        for _ in 0..10 {
            let token = match sampled {
                None => {
                    // The next step is submitted before anything is read of this one.
                    let (submissions, _, bytes) = count();
                    assert!(session.queue_next().unwrap());
                    let queued = count();
                    assert_eq!((queued.0, queued.2), (submissions + 1, bytes));
                    session.argmax().unwrap()
                }
                Some(count) => {
                    session.candidates(count, &mut best).unwrap();
                    best[3].0
                }
            };
            session.decode(token, None).unwrap();
        }
        let after = count();
        let bytes = 10 * (4 + 8 * sampled.unwrap_or(1) as u64);
        assert_eq!(after, (before.0 + 10, before.1 + 10, before.2 + bytes), "{sampled:?}");
        // A token that the host chooses finds its step's commands encoded.
        assert_eq!(ahead() - ahead_before, if sampled.is_some() { 10 } else { 0 });
    }
}

/// 200 MB of weights that are repacked, and as many that go as they are: the host never holds more than one staging's worth
/// beside the mapping.
#[test]
fn uploading_stays_within_its_staging() {
    if !has_adapter() {
        return;
    }
    for format in [Format::Q6K, Format::F32] {
        const COLS: usize = 4096;
        let rows = 200_000_000 / format.row_bytes(COLS).unwrap();
        let mut graph = Graph::new();
        let tensor = graph.add_weight("weight", vec![rows, COLS], format);
        let table = WeightSlice { tensor, rows: 0..rows, experts: None, home: WeightHome::Device };
        let tokens = graph.inputs.tokens;
        graph.outputs =
            graph.push(None, "embed_tokens", Op::Embed { table, scale: None }, &[tokens]).unwrap();
        let bytes = vec![0u8; rows * format.row_bytes(COLS).unwrap()];
        let weights = std::collections::HashMap::from([("weight".to_owned(), bytes)]);
        let options = CompileOptions { micro_batch: Some(1), ..CompileOptions::default() };
        let loaded = loaded(&graph, &weights, &options);
        let peak = loaded.opened.device.peak_staged_bytes.load(std::sync::atomic::Ordering::Relaxed) as usize;
        let bound = super::weights::STAGED_BYTES + super::weights::BLOCK_BYTES;
        assert!(peak > bound / 2 && peak <= bound, "{format}: {peak} of {bound}");
        assert!(bound <= 512 << 20);
    }
}
