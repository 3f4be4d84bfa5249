//! Company changes nothing: sequences that share their steps and the pool of state have the bits that each has alone, in any
//! schedule: some decoding while others read their prompt, prompts cut anywhere, sequences that go back, end and begin.

use moe_run_backends::cpu::Cpu;
use moe_run_backends::executable::Executable;
use moe_run_backends::reference::Reference;
use moe_run_backends::sequences::{Feed, SequenceId, Sequences};
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Activations, Backend, BackendError, CompileOptions, KvType, WeightSource};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::Graph;
use moe_run_graph::synth::Random;
use moe_run_tests::{backends, fixtures, recurrent};
use std::sync::Arc;

const CONTEXT: usize = 256;
const MICRO_BATCH: usize = 96;

fn options(activations: Activations, kv_type: KvType) -> CompileOptions {
    CompileOptions {
        ctx_size: CONTEXT,
        micro_batch: Some(MICRO_BATCH),
        max_logits_rows: MICRO_BATCH,
        activations: Some(activations),
        kv_type,
        threads: Some(2),
        ..CompileOptions::default()
    }
}

/// What is run.
struct Subject {
    graph: Graph,
    weights: Arc<dyn WeightSource>,
    vocab_size: usize,
    goes_back: GoesBack,
}

/// How its sequences go back.
#[derive(Clone, Copy, PartialEq)]
enum GoesBack {
    /// To any length.
    Anywhere,
    /// As far as what windows hold reaches.
    WithinWindows,
    /// To the beginning.
    Nowhere,
}

fn compile(backend: &dyn Backend, model: &Subject, options: &CompileOptions) -> Box<dyn Executable> {
    backend.compile(&model.graph, model.weights.clone(), options).unwrap()
}

/// A text of so many tokens: each number is another text.
fn text(model: &Subject, number: u64, tokens: usize) -> Vec<TokenId> {
    let mut random = Random::new(&[17, number]);
    (0..tokens).map(|_| TokenId((random.next_u64() % model.vocab_size as u64) as u32)).collect()
}

/// The bits of the logits at every position of a text that is alone.
fn alone(session: &mut Session, tokens: &[TokenId]) -> Vec<Vec<u32>> {
    session.truncate(0).unwrap();
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

/// One sequence's part in a schedule.
struct Part {
    id: SequenceId,
    text: usize,
    done: usize,
}

/// Runs texts in company as a seed says, and compares each row of logits with what the text has alone.
fn schedule(
    company: &mut Sequences,
    texts: &[(Vec<TokenId>, Vec<Vec<u32>>)],
    at_once: usize,
    seed: u64,
    same: Same,
    goes_back: GoesBack,
) {
    let mut random = Random::new(&[99, seed]);
    let mut below = |n: usize| (random.next_u64() % n as u64) as usize;
    let mut waiting: Vec<usize> = (0..texts.len()).collect();
    let mut parts: Vec<Part> = Vec::new();
    let mut row = Vec::new();
    while !waiting.is_empty() || !parts.is_empty() {
        while parts.len() < at_once && !waiting.is_empty() && (parts.is_empty() || below(3) > 0) {
            let text = waiting.swap_remove(below(waiting.len()));
            parts.push(Part { id: company.open().unwrap(), text, done: 0 });
        }
        let mut feeds: Vec<(usize, usize)> = Vec::new();
        let mut room = MICRO_BATCH;
        for (i, part) in parts.iter_mut().enumerate() {
            let left = texts[part.text].0.len() - part.done;
            if part.done > 0 && below(12) == 0 {
                // It goes back, as a chat does whose last answer is thrown away; one that cannot begins anew.
                let wanted = part.done - below(part.done);
                let done = company.truncate(part.id, wanted);
                if (goes_back == GoesBack::Anywhere || wanted == part.done)
                    || (goes_back == GoesBack::WithinWindows && done.is_ok())
                {
                    done.unwrap();
                    part.done = wanted;
                } else {
                    assert!(matches!(done, Err(BackendError::Rewind { .. })), "{done:?}");
                    company.truncate(part.id, 0).unwrap();
                    part.done = 0;
                }
                continue;
            }
            let tokens = if below(2) == 0 { 1 } else { 1 + below(40) }.min(left).min(room);
            if tokens > 0 && below(4) > 0 {
                feeds.push((i, tokens));
                room -= tokens;
            }
        }
        if feeds.is_empty() {
            continue;
        }
        let made: Vec<Feed<'_>> = feeds
            .iter()
            .map(|(i, tokens)| {
                let part = &parts[*i];
                let tokens = &texts[part.text].0[part.done..part.done + tokens];
                Feed { sequence: part.id, tokens, wants_logits: true }
            })
            .collect();
        company.step(&made, None).unwrap();
        for (at, (i, tokens)) in feeds.iter().enumerate() {
            let part = &mut parts[*i];
            part.done += tokens;
            company.logits(at, &mut row).unwrap();
            let found: Vec<u32> = row.iter().map(|x| x.to_bits()).collect();
            let wanted = &texts[part.text].1[part.done - 1];
            let first = found.iter().zip(wanted).position(|(a, b)| match same {
                Same::ToTheBit => a != b,
                Same::Within(limit) => (f32::from_bits(*a) - f32::from_bits(*b)).abs() > limit,
            });
            assert!(
                first.is_none(),
                "seed {seed}: text {} at position {}, {tokens} tokens in a step of {:?}: logit {first:?} differs",
                part.text,
                part.done - 1,
                feeds
            );
        }
        parts.retain(|part| {
            let ends = part.done == texts[part.text].0.len();
            if ends {
                company.close(part.id);
            }
            !ends
        });
    }
}

/// How far a logit may be from what it is alone.
#[derive(Clone, Copy)]
enum Same {
    ToTheBit,
    Within(f32),
}

fn company(backend: &dyn Backend, model: &Subject, options: &CompileOptions, schedules: u64, most: usize) {
    company_within(backend, model, options, schedules, most, Same::ToTheBit);
}

fn company_within(
    backend: &dyn Backend,
    model: &Subject,
    options: &CompileOptions,
    schedules: u64,
    most: usize,
    same: Same,
) {
    let mut session = Session::new(compile(backend, model, options)).unwrap();
    let lengths = [1, 2, 17, 63, 64, 65, 90, 128, 131, 150, 7, 33, 200, 250, 12, 99, 64, 5, 70, 40];
    let texts: Vec<(Vec<TokenId>, Vec<Vec<u32>>)> = lengths
        .iter()
        .enumerate()
        .map(|(i, tokens)| {
            let tokens = text(model, i as u64, (*tokens).min(most));
            let bits = alone(&mut session, &tokens);
            (tokens, bits)
        })
        .collect();
    for seed in 0..schedules {
        let at_once = [2, 16, 3, 5, 8][seed as usize % 5];
        let mut pool = Sequences::new(compile(backend, model, options), 16 * CONTEXT, 16).unwrap();
        schedule(&mut pool, &texts, at_once, seed, same, model.goes_back);
        assert_eq!(pool.free_tokens(), 16 * CONTEXT, "all blocks come back");
    }
}

/// How many schedules of the longest matrix: a sixth of them without `MOE_FULL`.
fn schedules(all: u64) -> u64 {
    if fixtures::full() { all } else { all.div_ceil(6) }
}

fn subject(model: &Model) -> Subject {
    let has_windows = model.graph.states.iter().any(|state| state.window().is_some());
    let goes_back = if has_windows { GoesBack::WithinWindows } else { GoesBack::Anywhere };
    Subject {
        graph: model.graph.clone(),
        weights: model.file.clone(),
        vocab_size: model.config.vocab_size,
        goes_back,
    }
}

fn micro(stem: &str) -> Option<Subject> {
    Some(subject(&Model::open(&fixtures::find(&format!("micro/{stem}.gguf"))?).unwrap()))
}

fn recurrent() -> Subject {
    let (graph, weights) = recurrent::model().unwrap();
    Subject { graph, weights, vocab_size: recurrent::VOCAB, goes_back: GoesBack::Nowhere }
}

#[test]
fn on_the_cpu_company_changes_no_bit() {
    let Some(model) = micro("zoo-q4_k") else { return };
    company(&Cpu, &model, &options(Activations::Q8, KvType::F16), schedules(300), CONTEXT);
}

#[test]
fn on_the_cpu_company_changes_no_bit_in_any_format() {
    for (stem, path, _) in fixtures::micro_models() {
        if ["zoo-f16", "zoo-bf16"].contains(&stem) {
            continue; // below
        }
        let model = subject(&Model::open(&path).unwrap());
        for (activations, kv_type) in [
            (Activations::Q8, KvType::Q8_0),
            (Activations::F32, KvType::F32),
            (Activations::F32, KvType::F16),
        ] {
            println!("{stem} {activations} {kv_type}");
            company(&Cpu, &model, &options(activations, kv_type), schedules(10), CONTEXT);
        }
    }
}

/// Latents, caches that several layers read, choices of positions, small experts, chunks, gates and windows.
#[test]
fn on_the_cpu_company_changes_no_bit_of_any_kind_of_layer() {
    for stem in [
        "deepseek2/v3-q4_0",
        "gemma4/a4b-q4_0",
        "glm-dsa/small-q4_k_m",
        "grovemoe/main-q4_0",
        "llama4/scout-q4_0",
        "step35/flash-q4_0",
    ] {
        let Some(path) = fixtures::find(&format!("arch/{stem}.gguf")) else { continue };
        let model = subject(&Model::open(&path).unwrap());
        company(&Cpu, &model, &options(Activations::Q8, KvType::F16), schedules(30), CONTEXT);
    }
}

/// Weights in F16 and BF16 are summed in another order in a step of one token than in one of several, so that decoding
/// reads them as fast as memory gives them: the last bits differ. To have them the same, a step of one token would unpack
/// panels as the others do.
#[test]
fn on_the_cpu_company_changes_the_last_bits_of_halves_only() {
    for stem in ["zoo-f16", "zoo-bf16"] {
        let Some(model) = micro(stem) else { continue };
        let options = options(Activations::F32, KvType::F32);
        company_within(&Cpu, &model, &options, 5, CONTEXT, Same::Within(1e-4));
    }
}

#[test]
fn on_the_reference_company_changes_no_bit() {
    let Some(model) = micro("zoo-q4_k") else { return };
    for activations in [Activations::Q8, Activations::F32] {
        company(&Reference, &model, &options(activations, KvType::F16), 4, 40);
    }
}

#[test]
fn a_pool_says_what_does_not_fit_and_changes_nothing() {
    let Some(model) = micro("zoo-q4_k") else { return };
    let options = options(Activations::Q8, KvType::F16);
    let mut pool = Sequences::new(compile(&Cpu, &model, &options), 192, 2).unwrap();
    let (a, b) = (pool.open().unwrap(), pool.open().unwrap());
    assert!(matches!(pool.open(), Err(BackendError::Input(_))));
    let tokens = text(&model, 0, 96);
    let feed = |sequence, tokens| Feed { sequence, tokens, wants_logits: true };
    pool.step(&[feed(a, &tokens[..65])], None).unwrap();
    let error = pool.step(&[feed(b, &tokens[..65])], None).unwrap_err();
    assert!(matches!(error, BackendError::PoolFull { wanted_tokens: 128, free_tokens: 64 }), "{error}");
    assert!(pool.tokens(b).is_empty() && pool.free_tokens() == 64);
    pool.step(&[feed(b, &tokens[..64])], None).unwrap();
    pool.close(a);
    pool.step(&[feed(b, &tokens[64..])], None).unwrap();
    assert_eq!(pool.tokens(b), tokens);
    let twice = pool.step(&[feed(b, &tokens[..1]), feed(b, &tokens[..1])], None).unwrap_err();
    assert!(matches!(twice, BackendError::Input(_)), "{twice}");
    pool.step(&[feed(b, &tokens)], None).unwrap();
    let full = pool.step(&[feed(b, &tokens[..65])], None).unwrap_err();
    assert!(matches!(full, BackendError::ContextFull { wanted_tokens: 257, capacity_tokens: 256 }), "{full}");
}

#[test]
fn company_changes_no_bit_of_a_recurrent_model() {
    let model = recurrent();
    for activations in [Activations::Q8, Activations::F32] {
        company(&Cpu, &model, &options(activations, KvType::F16), schedules(30), CONTEXT);
        company(&Reference, &model, &options(activations, KvType::F16), schedules(6), 100);
    }
}

/// Short convolutions, gated delta nets of both orders of heads, mamba2.
#[test]
fn company_changes_no_bit_of_a_hybrid_model() {
    for stem in [
        "granitehybrid/small-q4_k_m",
        "lfm2moe/small-q8_0",
        "qwen35moe/small-q4_k_m",
        "qwen3next/small-fused-q8_0",
    ] {
        let Some(path) = fixtures::find(&format!("arch/{stem}.gguf")) else { continue };
        let model = Subject { goes_back: GoesBack::Nowhere, ..subject(&Model::open(&path).unwrap()) };
        for (activations, kv_type) in [(Activations::Q8, KvType::F16), (Activations::F32, KvType::F32)] {
            println!("{stem} {activations} {kv_type}");
            company(&Cpu, &model, &options(activations, kv_type), 2, CONTEXT);
        }
    }
}

/// Windows that are compressed, an indexer's choice among them, streams, experts by token. Matrices in BF16 are summed in one
/// order under 8-bit activations alone.
#[test]
fn company_changes_no_bit_of_compressed_attention() {
    let Some(path) = fixtures::find("arch/deepseek4/small-mxfp4.gguf") else { return };
    let model = Subject { goes_back: GoesBack::Nowhere, ..subject(&Model::open(&path).unwrap()) };
    company(&Cpu, &model, &options(Activations::Q8, KvType::F16), schedules(6), CONTEXT);
    company(&Reference, &model, &options(Activations::F32, KvType::F16), schedules(6), 20);
}

/// Its time steps' matrix is in F16, which is summed in one order under 8-bit activations alone.
#[test]
fn company_changes_no_bit_of_mamba1() {
    let Some(path) = fixtures::find("arch/jamba/small-q4_k_m.gguf") else { return };
    let model = Subject { goes_back: GoesBack::Nowhere, ..subject(&Model::open(&path).unwrap()) };
    company(&Cpu, &model, &options(Activations::Q8, KvType::F16), 2, CONTEXT);
}

/// A chat's next prompt, which parts from what is held, is not read from its beginning: states were kept at a border of blocks.
#[test]
fn a_hybrid_models_next_prompt_goes_on_from_a_border_of_blocks() {
    let Some(path) = fixtures::find("arch/qwen3next/small-fused-q8_0.gguf") else { return };
    let model = Subject { goes_back: GoesBack::Nowhere, ..subject(&Model::open(&path).unwrap()) };
    let tokens = text(&model, 5, 240);
    for backend in [&Cpu as &dyn Backend, &Reference] {
        let options = options(Activations::Q8, KvType::F16);
        let mut session = Session::new(compile(backend, &model, &options)).unwrap();
        let wanted = alone(&mut session, &tokens);
        let feed = |session: &mut Session, tokens: &[TokenId]| {
            session.feed(tokens, LogitsRows::Last, None, |_, _| Ok(())).unwrap();
        };
        session.truncate(0).unwrap();
        feed(&mut session, &tokens[..150]);
        assert_eq!(logits_bits(&mut session), wanted[149], "cut at the border");
        for i in 0..20 {
            session.decode(TokenId(i), None).unwrap();
        }
        for (prompt, kept) in [(200, 128), (229, 128), (150, 128), (130, 128), (128, 0), (240, 64)] {
            assert_eq!(session.reuse_prefix(&tokens[..prompt]).unwrap(), kept, "{prompt}");
            feed(&mut session, &tokens[kept..prompt]);
            assert_eq!(logits_bits(&mut session), wanted[prompt - 1], "{prompt}");
            session.decode(TokenId(1), None).unwrap();
            session.decode(TokenId(2), None).unwrap();
        }
    }
}

/// What a chat, a prompt that changes and a step that is queued ahead ask of a state that cannot go back.
#[test]
fn a_state_that_cannot_go_back_says_so() {
    let model = recurrent();
    let tokens = text(&model, 3, 40);
    for backend in [&Cpu as &dyn Backend, &Reference] {
        let options = options(Activations::Q8, KvType::F16);
        let mut session = Session::new(compile(backend, &model, &options)).unwrap();
        let wanted = alone(&mut session, &tokens);
        let feed = |session: &mut Session, tokens: &[TokenId]| {
            session.feed(tokens, LogitsRows::Last, None, |_, _| Ok(())).unwrap();
        };
        let error = session.truncate(20).unwrap_err();
        assert!(matches!(error, BackendError::Rewind { held_tokens: 40, wanted_tokens: 20 }), "{error}");
        assert_eq!(session.tokens().len(), 40, "refused, and nothing changed");
        session.truncate(40).unwrap();
        // A prompt that goes on from what is held keeps it; one that parts from it begins anew.
        session.truncate(0).unwrap();
        feed(&mut session, &tokens[..30]);
        assert_eq!(session.reuse_prefix(&tokens).unwrap(), 30);
        feed(&mut session, &tokens[30..]);
        assert_eq!(logits_bits(&mut session), wanted[39]);
        assert_eq!(session.reuse_prefix(&tokens[..35]).unwrap(), 0);
        feed(&mut session, &tokens[..35]);
        assert_eq!(logits_bits(&mut session), wanted[34]);
        // The best token's step cannot be taken back: it is not queued.
        assert!(!session.queue_next().unwrap());
        session.decode(tokens[35], None).unwrap();
        assert_eq!(logits_bits(&mut session), wanted[35]);
    }
}

/// Prompts whole in one step, then tokens one by one: on a device whose launches know one sequence, every row has the bits
/// that it has alone, in any order of the steps; prompts cut elsewhere are within the rounding of their sums.
#[test]
fn on_gpus_rows_have_the_bits_that_they_have_alone() {
    let Some(model) = micro("zoo-q4_k") else { return };
    on_gpus(&model);
}

/// The same where a sequence has a state that every token changes.
#[test]
fn on_gpus_rows_of_a_recurrent_model_have_the_bits_that_they_have_alone() {
    on_gpus(&recurrent());
}

fn on_gpus(model: &Subject) {
    let lengths = [(1, 6), (2, 3), (17, 9), (40, 5), (64, 4), (65, 8), (90, 3)];
    for backend in backends() {
        if ["cpu", "reference"].contains(&backend.name()) {
            continue;
        }
        let backend = backend.as_ref();
        let options = options(Activations::Q8, KvType::F16);
        let mut session = Session::new(compile(backend, model, &options)).unwrap();
        let mut wanted = Vec::new();
        for (i, (prompt, more)) in lengths.into_iter().enumerate() {
            let tokens = text(model, i as u64, prompt + more);
            session.truncate(0).unwrap();
            session.feed(&tokens[..prompt], LogitsRows::Last, None, |_, _| Ok(())).unwrap();
            let mut rows = vec![logits_bits(&mut session)];
            for token in &tokens[prompt..] {
                session.decode(*token, None).unwrap();
                rows.push(logits_bits(&mut session));
            }
            wanted.push((tokens, prompt, rows));
        }
        for seed in 0..3 {
            let mut random = Random::new(&[23, seed]);
            let mut below = |n: usize| (random.next_u64() % n as u64) as usize;
            let mut pool = Sequences::new(compile(backend, model, &options), 7 * CONTEXT, 7).unwrap();
            let ids: Vec<SequenceId> = wanted.iter().map(|_| pool.open().unwrap()).collect();
            let mut row = Vec::new();
            while ids.iter().zip(&wanted).any(|(id, text)| pool.tokens(*id).len() < text.0.len()) {
                let (mut feeds, mut room) = (Vec::new(), MICRO_BATCH);
                for (i, (tokens, prompt, _)) in wanted.iter().enumerate() {
                    let held = pool.tokens(ids[i]).len();
                    let next = if held == 0 { *prompt } else { 1 };
                    if held < tokens.len() && next <= room && below(3) > 0 {
                        room -= next;
                        let tokens = &tokens[held..held + next];
                        feeds.push((i, Feed { sequence: ids[i], tokens, wants_logits: true }));
                    }
                }
                if feeds.is_empty() {
                    continue;
                }
                let made: Vec<Feed<'_>> = feeds.iter().map(|(_, feed)| *feed).collect();
                pool.step(&made, None).unwrap();
                for (at, (i, _)) in feeds.iter().enumerate() {
                    pool.logits(at, &mut row).unwrap();
                    let found: Vec<u32> = row.iter().map(|x| x.to_bits()).collect();
                    let (_, prompt, rows) = &wanted[*i];
                    let decoded = pool.tokens(ids[*i]).len() - prompt;
                    assert!(found == rows[decoded], "{}: text {i}, token {decoded}", backend.name());
                }
            }
        }
        let f32 = self::options(Activations::F32, KvType::F32);
        company_within(backend, model, &f32, 2, 48, Same::Within(2e-3));
    }
}

fn logits_bits(session: &mut Session) -> Vec<u32> {
    let mut row = Vec::new();
    session.logits(&mut row).unwrap();
    row.iter().map(|x| x.to_bits()).collect()
}
