//! What the CPU backend promises about bits: the reference's, in 8 bits; and the same with any thread count, any cut of the
//! prompt, any set of taps, held between launches or not.

use moe_run_backends::cpu::pool::Pool;
use moe_run_backends::cpu::{Cpu, compile_on};
use moe_run_backends::executable::{Executable, WeightSource};
use moe_run_backends::reference::Reference;
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Activations, Backend, BackendError, CompileOptions, KvType, Observer, TapValue};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::passes::TapSelection;
use moe_run_graph::quant::Format;
use moe_run_inspect::cases;
use moe_run_tests::{fixtures, relative_l2};
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;

/// Counts taps; that it is there makes the executable run launch by launch.
#[derive(Default)]
struct Count(usize);

impl Observer for Count {
    fn tap(&mut self, _: &TapValue<'_>) -> Result<(), BackendError> {
        self.0 += 1;
        Ok(())
    }
}

/// Logits after a prompt, and after each of four more tokens.
fn logits(model: &Model, options: &CompileOptions, prompt: usize, watched: bool) -> Vec<Vec<f32>> {
    logits_of(&Cpu, model, options, prompt, watched)
}

fn logits_of(
    backend: &dyn Backend,
    model: &Model,
    options: &CompileOptions,
    prompt: usize,
    watched: bool,
) -> Vec<Vec<f32>> {
    let executable = backend.compile(&model.graph, model.file.clone(), options).unwrap();
    logits_by(executable, model, options, prompt, watched)
}

fn logits_by(
    executable: Box<dyn Executable>,
    model: &Model,
    options: &CompileOptions,
    prompt: usize,
    watched: bool,
) -> Vec<Vec<f32>> {
    let mut session = Session::new(executable).unwrap();
    let vocab = model.config.vocab_size;
    let token = |i: usize| TokenId(((i * 7919 + 13) % vocab) as u32);
    let tokens: Vec<TokenId> = (0..prompt).map(token).collect();
    let mut count = Count::default();
    let mut rows = vec![Vec::new(); 5];
    let watch: Option<&mut dyn Observer> = if watched { Some(&mut count) } else { None };
    session.feed(&tokens, LogitsRows::Last, watch, |_, _| Ok(())).unwrap();
    session.logits(&mut rows[0]).unwrap();
    for i in 1..5 {
        let watch: Option<&mut dyn Observer> = if watched { Some(&mut count) } else { None };
        session.decode(token(prompt + i), watch).unwrap();
        session.logits(&mut rows[i]).unwrap();
    }
    assert_eq!(count.0 > 0, watched && !options.taps.is_empty());
    rows
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|r| r.iter().map(|x| x.to_bits()).collect()).collect()
}

fn tiny() -> Model {
    Model::open(&fixtures::tiny_q4_k_m()).unwrap()
}

#[test]
fn any_thread_count_gives_the_same_bits() {
    let model = tiny();
    for (kv_type, prompt) in [(KvType::F16, 37), (KvType::Q8_0, 9), (KvType::F16, 1100)] {
        let options = CompileOptions { kv_type, ctx_size: prompt + 8, ..CompileOptions::default() };
        // Also more threads than this machine has processors.
        let with = |threads| {
            let pool = Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap();
            let executable = compile_on(pool, &model.graph, model.file.clone(), &options).unwrap();
            assert_eq!(executable.info().threads, threads);
            logits_by(executable, &model, &options, prompt, false)
        };
        let one = with(1);
        assert!(one.iter().flatten().all(|x| x.is_finite()));
        for threads in [2, 3, 7] {
            let many = with(threads);
            assert!(bits(&one) == bits(&many), "{threads} threads, {kv_type}, {prompt} tokens");
        }
    }
}

#[test]
fn no_more_threads_than_processors_are_started() {
    let model = tiny();
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    for (wanted, threads) in
        [(1, 1), (processors, processors), (processors + 1, processors), (500, processors.min(500))]
    {
        let options = CompileOptions { threads: Some(wanted), ctx_size: 8, ..CompileOptions::default() };
        let executable = Cpu.compile(&model.graph, model.file.clone(), &options).unwrap();
        assert_eq!(executable.info().threads, threads, "{wanted} asked for, {processors} processors");
    }
}

#[test]
fn taps_and_watching_change_no_bit() {
    let model = tiny();
    let options = CompileOptions { threads: Some(2), ctx_size: 64, ..CompileOptions::default() };
    let plain = logits(&model, &options, 21, false);
    assert!(bits(&plain) == bits(&logits(&model, &options, 21, true)), "watched");
    let tapped = CompileOptions { taps: TapSelection::All, ..options };
    assert!(bits(&plain) == bits(&logits(&model, &tapped, 21, true)), "all taps");
    assert!(bits(&plain) == bits(&logits(&model, &tapped, 21, false)), "all taps, nobody watching");
}

#[test]
fn a_prompt_in_pieces_gives_the_same_bits() {
    let model = tiny();
    let whole = CompileOptions { threads: Some(2), ctx_size: 1200, ..CompileOptions::default() };
    let want = logits(&model, &whole, 1100, false);
    for micro_batch in [1, 5, 64, 600] {
        let options = CompileOptions { micro_batch: Some(micro_batch), ..whole.clone() };
        assert!(bits(&want) == bits(&logits(&model, &options, 1100, false)), "micro-batch {micro_batch}");
    }
}

/// What the tiny model's layers lack: latents, indexers, norms behind, gates, chunks, small experts, mamba1, a norm for two parts, entries of windows and streams. Their weights are quantized:
/// the order of the sums over plain floats alone is not defined.
const KINDS: &[&str] = &[
    "afmoe/trinity-q4_0",
    "cohere2moe/north-mini-q4_0",
    "deepseek2/v3-q4_0",
    "deepseek32/small-q4_0",
    "deepseek4/small-mxfp4",
    "gemma4/a4b-q4_0",
    "glm-dsa/small-q4_k_m",
    "grovemoe/main-q4_0",
    "jamba/small-q4_k_m",
    "laguna/xs-q4_0",
    "llama4/scout-q4_0",
    "mistral4/small-4-q4_0",
    "smallthinker/main-q4_0",
    "step35/flash-q4_0",
];

/// In pieces and token by token as at once, and as the reference.
#[test]
fn every_kind_of_layer_has_its_bits() {
    for (stem, path, _) in fixtures::architecture_models().into_iter().filter(|m| KINDS.contains(&m.0)) {
        let model = Model::open(&path).unwrap();
        let options = CompileOptions { threads: Some(2), ctx_size: 64, ..CompileOptions::default() };
        let want = logits(&model, &options, 37, false);
        assert!(want.iter().flatten().all(|x| x.is_finite()), "{stem}");
        for micro_batch in [1, 5] {
            let options = CompileOptions { micro_batch: Some(micro_batch), ..options.clone() };
            let got = logits(&model, &options, 37, false);
            assert!(bits(&got) == bits(&want), "{stem}, micro-batch {micro_batch}");
        }
        let executable = Cpu.compile(&model.graph, model.file.clone(), &options).unwrap();
        let same = CompileOptions { ctx_size: 64, ..cases::same_definition(executable.info()) };
        let reference = logits_of(&Reference, &model, &same, 37, false);
        assert!(bits(&reference) == bits(&want), "{stem}: not the reference's bits");
    }
}

#[test]
fn eight_bits_are_the_references() {
    let mut seen = 0;
    // What the others lack: sinks, windows, biases, a clamped SwiGLU; recurrent layers of each kind.
    let further = [
        "gpt-oss/mxfp4-mxfp4_moe",
        "granitehybrid/small-q4_k_m",
        "lfm2moe/small-q8_0",
        "qwen35moe/small-q4_k_m",
        "qwen3next/small-fused-q8_0",
    ];
    let further = fixtures::architecture_models().into_iter().filter(|m| further.contains(&m.0));
    for (stem, path, _) in fixtures::micro_models().into_iter().chain(fixtures::tiny_models()).chain(further)
    {
        let model = Model::open(&path).unwrap();
        for (kv_type, prompt) in [(KvType::F16, 23), (KvType::F32, 6), (KvType::Q8_0, 12)] {
            let narrow = model.graph.states.iter().any(|s| s.is_per_token() && !s.width.is_multiple_of(32));
            if narrow && kv_type == KvType::Q8_0 {
                continue; // refused: heads are no whole blocks of 32
            }
            let options = CompileOptions { kv_type, ctx_size: 64, ..CompileOptions::default() };
            let executable = Cpu.compile(&model.graph, model.file.clone(), &options).unwrap();
            let same = CompileOptions { ctx_size: 64, ..cases::same_definition(executable.info()) };
            assert_eq!((same.activations, same.kv_type), (Some(Activations::Q8), kv_type));
            let (got, want) = (
                logits(&model, &options, prompt, false),
                logits_of(&Reference, &model, &same, prompt, false),
            );
            if matches!(stem, "zoo-f16" | "zoo-bf16") {
                // The order of the sums over plain floats is not defined.
                assert!(got.iter().zip(&want).all(|(got, want)| relative_l2(got, want) < 1e-4), "{stem}");
            } else {
                assert!(bits(&got) == bits(&want), "{stem}, {kv_type}, {prompt} tokens");
                seen += 1;
            }
        }
    }
    assert!(seen > 0, "no model was there");
}

/// Attention over several parts of the cache, in a prompt and in a step of one token.
#[test]
fn eight_bits_are_the_references_over_a_long_cache() {
    let model = tiny();
    let options = CompileOptions { ctx_size: 600, ..CompileOptions::default() };
    let executable = Cpu.compile(&model.graph, model.file.clone(), &options).unwrap();
    let same = CompileOptions { ctx_size: 600, ..cases::same_definition(executable.info()) };
    let want = logits_of(&Reference, &model, &same, 530, false);
    assert!(bits(&logits(&model, &options, 530, false)) == bits(&want));
}

/// Plain floats between quantized matrices are summed as the reference sums them.
#[test]
fn floats_among_eight_bits_are_the_references() {
    let mut model = tiny();
    let mut weights: HashMap<String, Vec<u8>> = HashMap::new();
    for decl in &mut model.graph.weights {
        let mut bytes = model.file.bytes(&decl.name).unwrap().to_vec();
        let other = match decl.name.as_str() {
            "blk.0.attn_output.weight" | "blk.2.ffn_down_exps.weight" => Some(Format::F16),
            "blk.1.attn_q.weight" | "blk.3.ffn_gate_exps.weight" => Some(Format::Bf16),
            _ => None,
        };
        if let Some(other) = other {
            let mut values = vec![0.0f32; decl.shape.iter().product()];
            decl.format.decode_row(&bytes, &mut values);
            let word = |x: &f32| match other {
                Format::F16 => half::f16::from_f32(*x).to_le_bytes(),
                _ => half::bf16::from_f32(*x).to_le_bytes(),
            };
            bytes = values.iter().flat_map(word).collect();
            decl.format = other;
        }
        weights.insert(decl.name.clone(), bytes);
    }
    assert!(model.graph.weights.iter().filter(|w| w.format == Format::F16).count() == 2);
    let weights: Arc<dyn WeightSource> = Arc::new(weights);
    let run = |backend: &dyn Backend, options: &CompileOptions| {
        let executable = backend.compile(&model.graph, Arc::clone(&weights), options).unwrap();
        let same = CompileOptions { ctx_size: 64, ..cases::same_definition(executable.info()) };
        let mut session = Session::new(executable).unwrap();
        let mut rows = vec![Vec::new(); 2];
        let tokens: Vec<TokenId> = (0..21).map(|i| TokenId(i * 37 + 5)).collect();
        session.feed(&tokens, LogitsRows::Last, None, |_, _| Ok(())).unwrap();
        session.logits(&mut rows[0]).unwrap();
        session.decode(TokenId(99), None).unwrap();
        session.logits(&mut rows[1]).unwrap();
        (rows, same)
    };
    let (got, same) = run(&Cpu, &CompileOptions { ctx_size: 64, ..CompileOptions::default() });
    assert!(bits(&got) == bits(&run(&Reference, &same).0));
}
