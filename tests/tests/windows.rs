//! States of a window's size: a layer that sees the last 128 tokens holds those and a step's rows, not the whole context, and
//! not one bit of any row is another than where it holds all.

use moe_run_backends::cpu::Cpu;
use moe_run_backends::executable::{MICRO_BATCH, PoolSize, Ring};
use moe_run_backends::reference::Reference;
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Activations, Backend, BackendError, CompileOptions, KvType};
use moe_run_graph::Model;
use moe_run_graph::architectures::lower_file;
use moe_run_graph::gguf::GgufFile;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{Graph, Lifetime, Op};
use moe_run_graph::synth::{Preset, Random, Synth, SynthOptions};
use moe_run_tests::{backends, fixtures};
use std::sync::Arc;

const CONTEXT: usize = 1024;
const STEP: usize = 40;

/// Windows of gates, sinks and clamps, of two kinds of layers, of shared caches, of chunks.
const MODELS: [&str; 8] = [
    "gpt-oss/mxfp4-mxfp4_moe",
    "gemma4/a4b-q4_0",
    "llama4/scout-q4_0",
    "mimo2/flash-q4_k_m",
    "step35/flash-q4_0",
    "cohere2moe/north-mini-q4_0",
    "exaone-moe/k-exaone-q4_0",
    "afmoe/trinity-q4_0",
];

fn open(stem: &str) -> Model {
    let mut model = Model::open(&fixtures::find(&format!("arch/{stem}.gguf")).expect("carried")).unwrap();
    shorten_chunks(&mut model.graph);
    model
}

/// Chunks as real models have them, of 8192 positions, are cut to 48.
fn shorten_chunks(graph: &mut Graph) {
    const CHUNK: usize = 48;
    let mut layers = Vec::new();
    for node in &mut graph.nodes {
        if let Op::Attention(attrs) = &mut node.op
            && let Some(chunk) = &mut attrs.chunk
        {
            *chunk = CHUNK;
            layers.extend(node.layer);
        }
    }
    for state in graph.states.iter_mut().filter(|state| layers.contains(&state.layer)) {
        state.lifetime = Lifetime::PerToken { window: Some(CHUNK) };
    }
}

/// The same graph, whose states say nothing of windows: a row for every token, as it was before there were rings.
fn without_windows(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    for state in graph.states.iter_mut().filter(|state| state.is_per_token()) {
        state.lifetime = Lifetime::PerToken { window: None };
    }
    graph
}

fn session(backend: &dyn Backend, model: &Model, graph: &Graph, kv_type: KvType) -> Session {
    let options = CompileOptions {
        ctx_size: CONTEXT,
        micro_batch: Some(STEP),
        max_logits_rows: STEP,
        activations: Some(Activations::Q8),
        kv_type,
        threads: Some(2),
        ..CompileOptions::default()
    };
    Session::new(backend.compile(graph, model.file.clone(), &options).unwrap()).unwrap()
}

fn text(model: &Model, number: u64, tokens: usize) -> Vec<TokenId> {
    let mut random = Random::new(&[51, number]);
    (0..tokens).map(|_| TokenId((random.next_u64() % model.config.vocab_size as u64) as u32)).collect()
}

type Rows = Vec<Vec<u32>>;

/// The bits of the logits behind each of some more tokens.
fn more(session: &mut Session, tokens: &[TokenId]) -> Rows {
    let (mut all, mut row) = (Vec::new(), Vec::new());
    session
        .feed(tokens, LogitsRows::All, None, |executable, range| {
            for i in 0..range.len() {
                executable.logits(i, &mut row)?;
                all.push(row.iter().map(|x| x.to_bits()).collect());
            }
            Ok(())
        })
        .unwrap();
    all
}

fn same(stem: &str, how: &str, found: &Rows, wanted: &[Vec<u32>]) {
    let differs = found.iter().zip(wanted).position(|(found, wanted)| found != wanted);
    assert!(found.len() == wanted.len() && differs.is_none(), "{stem}, {how}: position {differs:?}");
}

#[test]
fn on_the_cpu_windows_have_the_bits_of_whole_contexts() {
    for stem in MODELS {
        let model = open(stem);
        for kv_type in [KvType::F16, KvType::Q8_0] {
            if kv_type == KvType::Q8_0 && model.graph.states.iter().any(|s| s.width % 32 != 0) {
                continue;
            }
            bits_of_whole_contexts(&Cpu, stem, &model, kv_type, 420);
        }
    }
}

#[test]
fn on_the_reference_windows_have_the_bits_of_whole_contexts() {
    for stem in ["gpt-oss/mxfp4-mxfp4_moe", "llama4/scout-q4_0"] {
        bits_of_whole_contexts(&Reference, stem, &open(stem), KvType::F16, 230);
    }
}

/// The same kernels, whose rows lie elsewhere: in steps cut alike, and token by token.
#[test]
fn on_gpus_windows_have_the_bits_of_whole_contexts() {
    for backend in backends() {
        if ["cpu", "reference"].contains(&backend.name()) {
            continue;
        }
        for (stem, kv_type) in [
            ("gpt-oss/mxfp4-mxfp4_moe", KvType::F16),
            ("gpt-oss/mxfp4-mxfp4_moe", KvType::F32),
            ("gemma4/a4b-q4_0", KvType::F16),
            ("step35/flash-q4_0", KvType::Q8_0),
            ("llama4/scout-q4_0", KvType::F16),
        ] {
            let (backend, model) = (backend.as_ref(), open(stem));
            // Software that stands for a device takes its time.
            if backend.name() == "wgpu"
                && !fixtures::full()
                && (kv_type == KvType::F32 || stem.starts_with("llama4"))
            {
                continue;
            }
            let whole = without_windows(&model.graph);
            let tokens = text(&model, 3, 220);
            let [mut wanted, mut found] =
                [&whole, &model.graph].map(|graph| session(backend, &model, graph, kv_type));
            assert!(found.state_bytes() < wanted.state_bytes(), "{stem} on {}", backend.name());
            let steps = |session: &mut Session| {
                session.truncate(0).unwrap();
                let mut rows = Rows::new();
                for (from, to, step) in [(0, 130, 40), (130, 150, 1), (150, 200, 37), (200, 220, 1)] {
                    for tokens in tokens[from..to].chunks(step) {
                        rows.extend(more(session, tokens));
                    }
                }
                rows
            };
            let how = format!("on {} with {kv_type}", backend.name());
            same(stem, &how, &steps(&mut found), &steps(&mut wanted));
            // A short way back is in the window's rows, and the steps behind it are the same.
            for session in [&mut wanted, &mut found] {
                session.truncate(205).unwrap();
            }
            let again = [&mut wanted, &mut found].map(|session| more(session, &tokens[205..212]));
            same(stem, &how, &again[1], &again[0]);
            let error = found.truncate(60).unwrap_err();
            assert!(matches!(error, BackendError::Rewind { .. }), "{error}");
        }
    }
}

fn bits_of_whole_contexts(backend: &dyn Backend, stem: &str, model: &Model, kv_type: KvType, tokens: usize) {
    let tokens = text(model, 1, tokens);
    let mut whole = session(backend, model, &without_windows(&model.graph), kv_type);
    let wanted = more(&mut whole, &tokens);
    let mut windowed = session(backend, model, &model.graph, kv_type);
    let stored = if backend.name() == "reference" { KvType::F32 } else { kv_type };
    let declared = PoolSize::of_one(CONTEXT, STEP).bytes(&model.graph, stored);
    assert_eq!(windowed.state_bytes(), declared, "{stem}: the declaration says what is held");
    assert!(declared < whole.state_bytes(), "{stem}: {declared} of {}", whole.state_bytes());
    // The whole prompt in steps as they come.
    same(stem, "whole", &more(&mut windowed, &tokens), &wanted);
    // Token by token.
    windowed.truncate(0).unwrap();
    let mut found = Vec::new();
    for token in &tokens {
        found.extend(more(&mut windowed, &[*token]));
    }
    same(stem, "token by token", &found, &wanted);
    // Cut anywhere.
    for seed in 0..3 {
        let mut random = Random::new(&[52, seed]);
        windowed.truncate(0).unwrap();
        let mut found = Vec::new();
        while found.len() < tokens.len() {
            let count = 1 + (random.next_u64() % 90) as usize;
            found.extend(more(&mut windowed, &tokens[found.len()..(found.len() + count).min(tokens.len())]));
        }
        same(stem, "cut anywhere", &found, &wanted);
    }
}

/// To any length whose window is still held it goes back, with the same bits; to any other it says that it does not, and
/// nothing changes. What a prompt has in common with the last one is taken up from a border of blocks that was kept.
#[test]
fn a_session_goes_back_as_far_as_its_windows_reach() {
    for (stem, backend) in [
        ("gpt-oss/mxfp4-mxfp4_moe", &Cpu as &dyn Backend),
        ("gemma4/a4b-q4_0", &Cpu),
        ("step35/flash-q4_0", &Cpu),
        ("gpt-oss/mxfp4-mxfp4_moe", &Reference),
    ] {
        let model = open(stem);
        let tokens = text(&model, 2, 300);
        let mut whole = session(backend, &model, &without_windows(&model.graph), KvType::F16);
        let wanted = more(&mut whole, &tokens);
        let mut windowed = session(backend, &model, &model.graph, KvType::F16);
        let mut random = Random::new(&[53]);
        let (mut refused, mut went) = (0, 0);
        for _ in 0..24 {
            let held = windowed.tokens().len();
            let to = (random.next_u64() % (held as u64 + 1)) as usize;
            match windowed.truncate(to) {
                Ok(()) => {
                    went += usize::from(0 < to && to < held);
                    let end = (to + 1 + (random.next_u64() % 150) as usize).min(tokens.len());
                    same(stem, "gone back", &more(&mut windowed, &tokens[to..end]), &wanted[to..end]);
                }
                Err(BackendError::Rewind { held_tokens, wanted_tokens }) => {
                    assert_eq!((held_tokens, wanted_tokens), (held, to));
                    assert_eq!(windowed.tokens().len(), held, "refused, and nothing changed");
                    refused += 1;
                    if held < tokens.len() {
                        let end = (held + 10).min(tokens.len());
                        same(stem, "gone on", &more(&mut windowed, &tokens[held..end]), &wanted[held..end]);
                    }
                }
                Err(error) => panic!("{stem}: {error}"),
            }
        }
        assert!(refused > 0 && went > 0, "{stem}: {refused} refused, {went} gone back");
        // To a length that was marked it goes back from anywhere, as a measurement does.
        windowed.truncate(0).unwrap();
        more(&mut windowed, &tokens[..70]);
        windowed.mark().unwrap();
        for end in [260, 90, 300] {
            same(stem, "marked", &more(&mut windowed, &tokens[70..end]), &wanted[70..end]);
            windowed.truncate(70).unwrap();
        }
        // A chat: a prompt, a long answer, and the next prompt, which parts from it behind the first one.
        windowed.truncate(0).unwrap();
        let feed = |session: &mut Session, tokens: &[TokenId]| {
            session.feed(tokens, LogitsRows::Last, None, |_, _| Ok(())).unwrap();
            let mut row = Vec::new();
            session.logits(&mut row).unwrap();
            vec![row.iter().map(|x| x.to_bits()).collect()]
        };
        feed(&mut windowed, &tokens[..150]);
        for i in 0..300 {
            windowed.decode(TokenId(i % 7), None).unwrap();
        }
        for (prompt, kept) in [(170, 128), (160, 128), (290, 128), (280, 256), (120, 0)] {
            assert_eq!(windowed.reuse_prefix(&tokens[..prompt]).unwrap(), kept, "{stem}: {prompt}");
            same(stem, "next", &feed(&mut windowed, &tokens[kept..prompt]), &wanted[prompt - 1..prompt]);
            for i in 0..250 {
                windowed.decode(TokenId(i % 5), None).unwrap();
            }
        }
    }
}

/// A context of 32768 tokens of gpt-oss: the layers that see 128 tokens hold 11 blocks each.
#[test]
fn a_window_of_128_tokens_does_not_hold_32768_rows() {
    let preset = Preset::by_name("gpt-oss-20b").expect("the preset");
    let options = SynthOptions { preset, num_hidden_layers: None, seed: 0, vocabulary: None, format: None };
    let synth = Synth::new(&options).expect("a layout");
    // A sparse file: the header is all that is read.
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), synth.layout().header()).expect("written");
    file.as_file().set_len(synth.layout().file_bytes() as u64).expect("a sparse file");
    let (_, graph) = lower_file(&GgufFile::open(file.path()).expect("readable")).expect("lowered");
    let size = PoolSize::of_one(32768, MICRO_BATCH);
    let full = graph.states.iter().filter(|s| s.window().is_none()).count();
    assert_eq!((graph.states.len(), full), (48, 24));
    assert_eq!(Ring::of(128, MICRO_BATCH).tokens(), 11 * 64);
    for &kv_type in KvType::ALL {
        let row = kv_type.row_bytes(512) as u64;
        assert_eq!(size.bytes(&graph, kv_type), 24 * row * (32768 + 11 * 64));
        assert_eq!(PoolSize::whole(32768).bytes(&graph, kv_type), 48 * row * 32768);
    }
    // For several sequences each has a ring; never more than a row for every token.
    let several = |tokens, sequences| PoolSize { tokens, sequences, micro_batch: MICRO_BATCH };
    let row = KvType::F16.row_bytes(512) as u64;
    assert_eq!(several(65536, 4).bytes(&graph, KvType::F16), 24 * row * (65536 + 4 * 11 * 64));
    assert_eq!(several(2048, 4).bytes(&graph, KvType::F16), 48 * row * 2048);
}

/// What is told before loading is what is taken.
#[test]
fn the_memory_that_is_told_is_what_windows_take() {
    for backend in [&Cpu as &dyn Backend, &Reference] {
        let model = open("gpt-oss/mxfp4-mxfp4_moe");
        let told = Arc::new(std::sync::Mutex::new(0));
        let to = Arc::clone(&told);
        let options = CompileOptions {
            ctx_size: 8192,
            opened: Some(Arc::new(move |opened| *to.lock().unwrap() = opened.memory.kv_cache_bytes)),
            ..CompileOptions::default()
        };
        let session =
            Session::new(backend.compile(&model.graph, model.file.clone(), &options).unwrap()).unwrap();
        assert_eq!(session.state_bytes(), *told.lock().unwrap(), "{}", backend.name());
        let stored = if backend.name() == "reference" { KvType::F32 } else { KvType::F16 };
        assert!(session.state_bytes() < PoolSize::whole(8192).bytes(&model.graph, stored) * 3 / 5);
    }
}
