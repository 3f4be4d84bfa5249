//! The engine: a request is given the same tokens and log probabilities in a crowd, behind others' beginnings, put back and taken up
//! again, as alone. Requests that end, are cancelled or fail leave nothing behind.

mod cache;
mod constraints;

use moe_run_backends::cpu::Cpu;
use moe_run_backends::engine::{
    Choose, Chosen, EndReason, Ended, Engine, Flow, Listener, Looks, Refused, Request, Scheduler, Settings,
};
use moe_run_backends::generate::{Constraint, ConstraintFailure};
use moe_run_backends::sampler::SamplerOptions;
use moe_run_backends::sequences::Sequences;
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Activations, Backend, CompileOptions, KvType, WeightSource};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::Graph;
use moe_run_graph::synth::Random;
use moe_run_tests::{backends, fixtures, recurrent};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const CONTEXT: usize = 256;
const MICRO_BATCH: usize = 96;

struct Subject {
    graph: Graph,
    weights: Arc<dyn WeightSource>,
    vocab_size: usize,
}

fn zoo() -> Option<Subject> {
    let model = Model::open(&fixtures::find("micro/zoo-q4_k.gguf")?).unwrap();
    let vocab_size = model.config.vocab_size;
    Some(Subject { graph: model.graph, weights: model.file, vocab_size })
}

fn sequences(model: &Subject, activations: Activations, pool_tokens: usize, at_once: usize) -> Sequences {
    sequences_on(&Cpu, model, activations, pool_tokens, at_once)
}

fn sequences_on(
    backend: &dyn Backend,
    model: &Subject,
    activations: Activations,
    pool_tokens: usize,
    at_once: usize,
) -> Sequences {
    let options = CompileOptions {
        ctx_size: CONTEXT,
        micro_batch: Some(MICRO_BATCH),
        max_logits_rows: at_once,
        activations: Some(activations),
        kv_type: KvType::F16,
        threads: Some(2),
        ..CompileOptions::default()
    };
    let executable = backend.compile(&model.graph, model.weights.clone(), &options).unwrap();
    Sequences::new(executable, pool_tokens, at_once).unwrap()
}

fn settings(shares_prefixes: bool) -> Settings {
    Settings { max_queue: 100, max_step: None, cuts_freely: true, shares_prefixes }
}

/// A token with the bits of its log probability, and of those of the best ones.
type Told = (TokenId, Option<u32>, Vec<(TokenId, u32)>);

/// What a listener heard.
#[derive(Debug, Default, Clone, PartialEq)]
struct Heard {
    tokens: Vec<Told>,
    ended: Option<Ended>,
}

#[derive(Clone, Default)]
struct Recorder {
    heard: Arc<Mutex<Heard>>,
    gone: Arc<AtomicBool>,
    stop_after: Option<usize>,
}

impl Listener for Recorder {
    fn token(&mut self, chosen: &Chosen) -> Flow {
        let mut heard = self.heard.lock().unwrap();
        let top = chosen.top.iter().map(|(token, p)| (*token, p.to_bits())).collect();
        heard.tokens.push((chosen.token, chosen.logprob.map(f32::to_bits), top));
        if self.stop_after == Some(heard.tokens.len()) { Flow::Stop } else { Flow::GoOn }
    }

    fn end(&mut self, ended: &Ended) {
        assert!(self.heard.lock().unwrap().ended.replace(ended.clone()).is_none(), "it ends once");
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

/// A request by number: every way of choosing, every length, beginnings in common.
fn asked(model: &Subject, number: u64) -> (Vec<TokenId>, Choose, usize) {
    let mut random = Random::new(&[31, number]);
    let mut below = |n: u64| random.next_u64() % n;
    let vocab_size = model.vocab_size as u64;
    let begins_like = below(3);
    let common = [0, 64, 100, 130][below(4) as usize];
    let longest = if below(3) == 0 { 110 } else { 20 };
    let own = 1 + below(longest) as usize;
    let mut shared = Random::new(&[32, begins_like]);
    let mut prompt: Vec<TokenId> =
        (0..common).map(|_| TokenId((shared.next_u64() % vocab_size) as u32)).collect();
    prompt.extend((0..own).map(|_| TokenId(below(vocab_size) as u32)));
    let sampler = SamplerOptions {
        temperature: [0.0, 0.7, 1.3][below(3) as usize],
        top_k: [0, 5, 40][below(3) as usize],
        top_p: [1.0, 0.9][below(2) as usize],
        min_p: [0.0, 0.05][below(2) as usize],
        repetition_penalty: [1.0, 1.2][below(2) as usize],
        seed: below(1000),
    };
    let choose = Choose {
        presence_penalty: [0.0, 0.5][below(2) as usize],
        frequency_penalty: [0.0, -0.3, 0.8][below(3) as usize],
        logit_bias: if below(2) == 0 { vec![(TokenId(below(vocab_size) as u32), 3.0)] } else { Vec::new() },
        logprobs: [None, Some(0), Some(5)][below(3) as usize],
        ..Choose::by(sampler)
    };
    let max_tokens = (1 + below(40) as usize).min(CONTEXT + 1 - prompt.len());
    (prompt, choose, max_tokens)
}

fn request(asked: &(Vec<TokenId>, Choose, usize), recorder: &Recorder) -> Request {
    let (prompt, choose, max_tokens) = asked.clone();
    let listener = Box::new(recorder.clone());
    let (max_tokens, end_tokens) = (Some(max_tokens), Arc::new([]));
    Request { prompt, max_tokens, choose, constraint: None, looks: Looks::default(), end_tokens, listener }
}

fn alone(scheduler: &mut Scheduler, asked: &(Vec<TokenId>, Choose, usize)) -> Heard {
    let recorder = Recorder::default();
    scheduler.submit(request(asked, &recorder));
    while !scheduler.is_idle() {
        scheduler.step();
    }
    let heard = recorder.heard.lock().unwrap().clone();
    let ended = heard.ended.as_ref().expect("an end");
    assert_eq!(ended.reason, EndReason::MaxTokens);
    assert_eq!((ended.usage.output_tokens, ended.usage.cached_tokens), (asked.2, 0));
    heard
}

/// Requests in a crowd of up to `at_once` that comes and goes as a seed says, each compared with what it is alone.
fn crowd(model: &Subject, activations: Activations, at_once: usize, seeds: u64) {
    let mut single = Scheduler::new(sequences(model, activations, CONTEXT, 1), settings(false)).unwrap();
    let asked: Vec<_> = (0..(at_once as u64 + 8)).map(|number| asked(model, number)).collect();
    let wanted: Vec<Heard> = asked.iter().map(|asked| alone(&mut single, asked)).collect();
    let (mut cached, mut preemptions) = (0, 0);
    for seed in 0..seeds {
        // Room for all, for hardly two, or for some.
        let pool_tokens = [at_once * CONTEXT, CONTEXT + 128, at_once / 5 * CONTEXT][seed as usize % 3];
        let pool = sequences(model, activations, pool_tokens, at_once);
        let max_step = (seed % 4 == 3).then_some(Duration::from_micros(300));
        let mut scheduler = Scheduler::new(pool, Settings { max_step, ..settings(seed % 5 != 4) }).unwrap();
        let mut random = Random::new(&[33, seed]);
        let mut below = |n: usize| (random.next_u64() % n as u64) as usize;
        let mut waiting: Vec<usize> = (0..asked.len()).chain(0..asked.len()).collect();
        let mut running: Vec<(usize, Recorder)> = Vec::new();
        while !waiting.is_empty() || !scheduler.is_idle() {
            while !waiting.is_empty() && running.len() < at_once + 4 && below(at_once / 5) > 0 {
                let number = waiting.swap_remove(below(waiting.len()));
                let recorder = Recorder::default();
                scheduler.submit(request(&asked[number], &recorder));
                running.push((number, recorder));
            }
            if !running.is_empty() && below(25) == 0 {
                let (number, recorder) = running.swap_remove(below(running.len()));
                recorder.gone.store(true, Ordering::Relaxed);
                waiting.push(number);
            }
            scheduler.step();
            running.retain(|(number, recorder)| {
                let heard = recorder.heard.lock().unwrap();
                let Some(ended) = &heard.ended else { return true };
                assert_eq!(heard.tokens, wanted[*number].tokens, "seed {seed}, request {number}: {ended:?}");
                cached += ended.usage.cached_tokens;
                preemptions += ended.usage.preemptions;
                false
            });
        }
        assert!(running.is_empty());
        assert_eq!(scheduler.free_tokens(), pool_tokens, "all blocks come back");
        assert_eq!(scheduler.meter().blocks_used(), 0);
    }
    println!("{at_once} at once, {activations}: {cached} tokens cached, {preemptions} preemptions");
    assert!(cached > 0 && preemptions > 0);
}

#[test]
fn a_request_has_the_same_bits_in_a_crowd_as_alone() {
    let Some(model) = zoo() else { return };
    for activations in [Activations::Q8, Activations::F32] {
        crowd(&model, activations, 16, if fixtures::full() { 100 } else { 10 });
        crowd(&model, activations, 64, if fixtures::full() { 30 } else { 3 });
    }
}

/// Behind the engine a GPU's rows are those that a request has alone, prompts of up to a block included.
#[test]
fn on_gpus_a_crowd_has_the_bits_of_each_alone() {
    let Some(model) = zoo() else { return };
    for backend in backends() {
        if ["cpu", "reference"].contains(&backend.name()) {
            continue;
        }
        let settings = Settings { cuts_freely: false, ..settings(false) };
        let new = |at_once| {
            let pool = sequences_on(backend.as_ref(), &model, Activations::Q8, at_once * CONTEXT, at_once);
            Scheduler::new(pool, settings.clone()).unwrap()
        };
        let mut single = new(1);
        let asked = (0..7).map(|number| {
            let (mut prompt, choose, max_tokens) = asked(&model, number);
            prompt.truncate(60);
            (prompt, choose, max_tokens.min(8))
        });
        let asked: Vec<_> = asked.collect();
        let wanted: Vec<Heard> = asked.iter().map(|asked| alone(&mut single, asked)).collect();
        let mut scheduler = new(4);
        let recorders: Vec<Recorder> = asked.iter().map(|_| Recorder::default()).collect();
        for (asked, recorder) in asked.iter().zip(&recorders) {
            scheduler.submit(request(asked, recorder));
            scheduler.step();
        }
        while !scheduler.is_idle() {
            scheduler.step();
        }
        for (recorder, wanted) in recorders.iter().zip(&wanted) {
            assert_eq!(recorder.heard.lock().unwrap().tokens, wanted.tokens, "{}", backend.name());
        }
        assert_eq!(scheduler.free_tokens(), 4 * CONTEXT);
    }
}

/// What a sequence alone gives through a session, which has neither blocks nor a queue.
#[test]
fn alone_is_what_a_session_gives() {
    let Some(model) = zoo() else { return };
    let asked = (asked(&model, 3).0, Choose::by(SamplerOptions::GREEDY), 20);
    let mut scheduler =
        Scheduler::new(sequences(&model, Activations::Q8, CONTEXT, 1), settings(true)).unwrap();
    let heard = alone(&mut scheduler, &asked);
    let options = CompileOptions {
        ctx_size: CONTEXT,
        micro_batch: Some(MICRO_BATCH),
        activations: Some(Activations::Q8),
        ..CompileOptions::default()
    };
    let mut session =
        Session::new(Cpu.compile(&model.graph, model.weights.clone(), &options).unwrap()).unwrap();
    session.feed(&asked.0, LogitsRows::Last, None, |_, _| Ok(())).unwrap();
    for (token, ..) in heard.tokens {
        assert_eq!(session.argmax().unwrap(), token);
        session.decode(token, None).unwrap();
    }
}

/// A state of a whole sequence stands behind its last token: where it was kept, at the last border of a prompt, those who begin
/// with the same tokens take it up, with the bits that they have alone.
fn takes_up_kept_states(model: &Subject) {
    let asked: Vec<_> = (0..12).map(|number| asked(model, number)).collect();
    let mut single = Scheduler::new(sequences(model, Activations::Q8, CONTEXT, 1), settings(false)).unwrap();
    let wanted: Vec<Heard> = asked.iter().map(|asked| alone(&mut single, asked)).collect();
    let pool = sequences(model, Activations::Q8, 8 * CONTEXT, 8);
    let mut scheduler = Scheduler::new(pool, settings(true)).unwrap();
    for again in [false, true] {
        let recorders: Vec<Recorder> = asked.iter().map(|_| Recorder::default()).collect();
        for (asked, recorder) in asked.iter().zip(&recorders) {
            scheduler.submit(request(asked, recorder));
        }
        while !scheduler.is_idle() {
            scheduler.step();
        }
        for ((recorder, wanted), (prompt, ..)) in recorders.iter().zip(&wanted).zip(&asked) {
            let heard = recorder.heard.lock().unwrap();
            assert_eq!(heard.tokens, wanted.tokens);
            let cached = heard.ended.as_ref().unwrap().usage.cached_tokens;
            // A template may end the next prompt otherwise within its last 16 tokens.
            let border = prompt.len().saturating_sub(16) / 64 * 64;
            assert!(cached % 64 == 0 && cached < prompt.len(), "{cached} of {}", prompt.len());
            assert!(!again || cached >= border, "{cached} of {}, wanted {border}", prompt.len());
        }
    }
    assert_eq!(scheduler.free_tokens(), 8 * CONTEXT, "all blocks come back");
}

#[test]
fn a_recurrent_model_takes_up_states_that_were_kept() {
    let (graph, weights) = recurrent::model().unwrap();
    takes_up_kept_states(&Subject { graph, weights, vocab_size: recurrent::VOCAB });
}

/// A model whose layers with a window hold no more than that and a step's rows.
fn windowed(path: &str) -> Subject {
    let model = Model::open(&fixtures::find(path).expect("carried")).unwrap();
    let vocab_size = model.config.vocab_size;
    let model = Subject { graph: model.graph, weights: model.file, vocab_size };
    let pool = sequences(&model, Activations::Q8, 8 * CONTEXT, 8);
    assert!(pool.shares_kept_states() && !pool.keeps_at_ends(), "{path}: windows in rings");
    model
}

#[test]
fn a_model_with_windows_takes_up_what_was_kept_and_has_the_same_bits_in_a_crowd() {
    for path in ["arch/gemma4/a4b-q4_0.gguf", "arch/step35/flash-q4_0.gguf"] {
        let model = windowed(path);
        takes_up_kept_states(&model);
        crowd(&model, Activations::Q8, 16, if fixtures::full() { 20 } else { 3 });
    }
}

/// Quantized: F16 weights are added up in another order in steps of one token.
#[test]
fn a_hybrid_model_takes_up_states_that_were_kept_and_has_the_same_bits_in_a_crowd() {
    let path = fixtures::find("arch/qwen3next/small-fused-q8_0.gguf").expect("carried");
    let model = Model::open(&path).unwrap();
    let vocab_size = model.config.vocab_size;
    let model = Subject { graph: model.graph, weights: model.file, vocab_size };
    takes_up_kept_states(&model);
    crowd(&model, Activations::Q8, 16, if fixtures::full() { 20 } else { 3 });
}

#[test]
fn ends_say_why() {
    let Some(model) = zoo() else { return };
    let mut scheduler =
        Scheduler::new(sequences(&model, Activations::Q8, CONTEXT, 2), settings(true)).unwrap();
    let (prompt, ..) = asked(&model, 1);
    let run = |scheduler: &mut Scheduler, request: Request| {
        scheduler.submit(request);
        while !scheduler.is_idle() {
            scheduler.step();
        }
    };
    let greedy = Choose::by(SamplerOptions::GREEDY);
    let base = (prompt.clone(), greedy.clone(), 30);
    let recorder = Recorder::default();
    run(&mut scheduler, request(&base, &recorder));
    let heard = recorder.heard.lock().unwrap().clone();
    let third = heard.tokens[2].0;
    let first = heard.tokens.iter().position(|t| t.0 == third).unwrap();

    let recorder = Recorder::default();
    run(&mut scheduler, Request { end_tokens: Arc::new([third]), ..request(&base, &recorder) });
    let ended = recorder.heard.lock().unwrap().ended.clone().unwrap();
    assert_eq!((ended.reason, ended.usage.output_tokens), (EndReason::EndToken, first));

    let recorder = Recorder { stop_after: Some(4), ..Recorder::default() };
    run(&mut scheduler, request(&base, &recorder));
    assert_eq!(recorder.heard.lock().unwrap().ended.as_ref().unwrap().reason, EndReason::Stopped);

    // Until the context is full: every position holds a token, and one more was chosen.
    let recorder = Recorder::default();
    run(&mut scheduler, Request { max_tokens: None, ..request(&base, &recorder) });
    let ended = recorder.heard.lock().unwrap().ended.clone().unwrap();
    assert_eq!(ended.reason, EndReason::ContextFull);
    assert_eq!(ended.usage.output_tokens, CONTEXT + 1 - prompt.len());

    for (prompt, choose, words) in [
        (vec![TokenId(1); CONTEXT + 1], greedy.clone(), "the context is full: 257 tokens"),
        (Vec::new(), greedy.clone(), "no tokens"),
        (prompt.clone(), Choose { presence_penalty: f32::NAN, ..greedy.clone() }, "presence_penalty"),
        (vec![TokenId(1_000_000)], greedy, "token 1000000 of a vocabulary"),
    ] {
        let recorder = Recorder::default();
        run(&mut scheduler, request(&(prompt, choose, 3), &recorder));
        let ended = recorder.heard.lock().unwrap().ended.clone().unwrap();
        assert!(matches!(&ended.reason, EndReason::Failed(why) if why.contains(words)), "{ended:?}");
    }
    assert_eq!(scheduler.free_tokens(), CONTEXT);
    let error = Scheduler::new(sequences(&model, Activations::Q8, 128, 2), settings(true)).unwrap_err();
    assert!(error.to_string().contains("one whole context"), "{error}");
}

#[test]
fn a_thread_takes_requests_while_it_runs_and_refuses_more_than_may_wait() {
    let Some(model) = zoo() else { return };
    let pool = sequences(&model, Activations::Q8, 4 * CONTEXT, 4);
    let engine = Engine::start(pool, Settings { max_queue: 6, ..settings(true) }).unwrap();
    let asked = (asked(&model, 5).0, Choose::by(SamplerOptions::GREEDY), 25);
    let recorders: Vec<Recorder> = (0..10).map(|_| Recorder::default()).collect();
    let requests = |recorders: &[Recorder]| recorders.iter().map(|r| request(&asked, r)).collect::<Vec<_>>();
    let too_many = vec![Recorder::default(); 11];
    let refused = engine.submit(requests(&too_many)).unwrap_err();
    assert_eq!(refused, Refused::QueueFull { wanted: 11, capacity: 10 });
    for pair in recorders.chunks(2) {
        engine.submit(requests(pair)).unwrap();
    }
    let done = || recorders.iter().all(|r| r.heard.lock().unwrap().ended.is_some());
    while !done() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let first = recorders[0].heard.lock().unwrap().tokens.clone();
    assert!(first.len() == 25 && recorders.iter().all(|r| r.heard.lock().unwrap().tokens == first));
    // Their places are free again; nobody listens to the next ones.
    let gone = Recorder::default();
    gone.gone.store(true, Ordering::Relaxed);
    engine.submit(requests(&vec![gone; 10])).unwrap();
    let last = Recorder::default();
    while engine.submit(requests(&vec![last.clone(); 1])).is_err() {
        std::thread::sleep(Duration::from_millis(2));
    }
    while last.heard.lock().unwrap().ended.is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let meter = Arc::clone(engine.meter());
    assert_eq!(meter.generated_tokens(), 11 * 25);
    engine.end();
}
