//! Outputs of the tiny model on every backend: greedy ones token for token, with one thread and two; sampled ones from the
//! device's candidates as from all logits.

use moe_run_backends::generate::{self, GenerateOptions, StopReason};
use moe_run_backends::reference::Reference;
use moe_run_backends::sampler::{Sampler, SamplerOptions};
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Backend, BackendError, CompileOptions};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_tests::{backends, fixtures};
use serde_json::Value;
use std::ops::ControlFlow::{Break, Continue};

/// Prompts of each model on a GPU backend without `--full`.
const SHORT: usize = 6;

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect()
}

/// The tokens after the prompt, the end token excluded.
fn generate(session: &mut Session, prompt: &[TokenId], end: TokenId, max_tokens: usize) -> Vec<TokenId> {
    let keep = session.reuse_prefix(prompt).unwrap();
    session.feed(&prompt[keep..], LogitsRows::Last, None, |_, _| Ok(())).unwrap();
    let mut output = Vec::new();
    while output.len() < max_tokens {
        // Before its token is known, where the backend can.
        let is_queued = session.queue_next().unwrap();
        assert_eq!(is_queued, session.executable().queues_steps());
        let token = session.argmax().unwrap();
        if token == end {
            break;
        }
        output.push(token);
        session.decode(token, None).unwrap();
    }
    output
}

fn check(backend: &dyn Backend, stem: &str, threads: usize, fresh: bool) {
    let Some(path) = fixtures::find(&format!("tiny/tiny-qwen3moe-{stem}.gguf")) else { return };
    let model = Model::open(&path).unwrap();
    let end = TokenId(model.metadata().u32("tokenizer.ggml.eos_token_id").unwrap());
    let cases = std::fs::read_to_string(fixtures::find("tiny/greedy.json").unwrap()).unwrap();
    let cases: Value = serde_json::from_str(&cases).unwrap();
    let options = CompileOptions { ctx_size: 256, threads: Some(threads), ..CompileOptions::default() };
    let new_session = || {
        let executable = backend.compile(&model.graph, model.file.clone(), &options).unwrap();
        Session::new(executable).unwrap()
    };
    let mut session = new_session();
    // GPU backends are run by the processor here: some of the prompts, and all with --full.
    let few = matches!(backend.name(), "cuda" | "wgpu") && !fixtures::full();
    let count = if few { SHORT } else { usize::MAX };
    for case in cases[stem].as_array().unwrap().iter().take(count) {
        let wanted = ids(&case["output_tokens"]);
        if fresh {
            session = new_session();
        }
        let limit = if case["ended"] == true { wanted.len() + 1 } else { wanted.len() };
        let found = generate(&mut session, &ids(&case["prompt_tokens"]), end, limit);
        assert_eq!(
            found,
            wanted,
            "{}, {stem}, {threads} threads: {} (text: {})",
            backend.name(),
            case["prompt"],
            case["text"].as_str().or(case["output"].as_str()).unwrap_or_default()
        );
    }
}

/// The runtime's own loop: the same tokens, and every way in which it ends.
#[test]
fn a_generation_ends_for_its_reason() {
    let Some(path) = fixtures::find("tiny/tiny-qwen3moe-q4_k_m.gguf") else { return };
    let model = Model::open(&path).unwrap();
    let end = TokenId(model.metadata().u32("tokenizer.ggml.eos_token_id").unwrap());
    let cases = std::fs::read_to_string(fixtures::find("tiny/greedy.json").unwrap()).unwrap();
    let cases: Value = serde_json::from_str(&cases).unwrap();
    let cases = cases["q4_k_m"].as_array().unwrap();
    let case =
        cases.iter().find(|case| case["ended"] == true && ids(&case["output_tokens"]).len() > 3).unwrap();
    let (prompt, wanted) = (ids(&case["prompt_tokens"]), ids(&case["output_tokens"]));
    let is_end = |token| token == end;
    let options = GenerateOptions { is_end: &is_end, ..GenerateOptions::default() };
    let tight = prompt.len() + 2;
    let run = |ctx_size: usize, options: &GenerateOptions<'_>, stop_at: usize| {
        let compiled = CompileOptions { ctx_size, ..CompileOptions::default() };
        let executable = Reference.compile(&model.graph, model.file.clone(), &compiled).unwrap();
        let mut session = Session::new(executable).unwrap();
        let mut sampler = Sampler::new(SamplerOptions::GREEDY).unwrap();
        let mut seen = Vec::new();
        let generated =
            generate::generate(&mut session, &mut sampler, &prompt, options, None, None, |token| {
                seen.push(token);
                let stops = seen.len() == stop_at;
                Ok::<_, BackendError>(if stops { Break(StopReason::StopText) } else { Continue(()) })
            });
        let generated = generated.unwrap();
        assert!(generated.failure.is_none() && generated.tokens == seen);
        assert_eq!(generated.tokens, wanted[..seen.len()]);
        (generated.stop_reason, seen.len(), generated.timings.prompt_tokens_evaluated)
    };
    let (all, evaluated) = (wanted.len(), prompt.len());
    assert_eq!(run(256, &options, 0), (StopReason::EndToken, all, evaluated));
    assert_eq!(run(256, &options, 2), (StopReason::StopText, 2, evaluated));
    assert_eq!(
        run(256, &GenerateOptions { max_tokens: Some(3), ..options }, 0),
        (StopReason::MaxTokens, 3, evaluated)
    );
    assert_eq!(
        run(256, &GenerateOptions { max_tokens: Some(0), ..options }, 0),
        (StopReason::MaxTokens, 0, evaluated)
    );
    // The last token that is chosen has no room itself.
    assert_eq!(run(tight, &options, 0), (StopReason::ContextFull, 3, evaluated));
    let interrupted = GenerateOptions { is_interrupted: &|| true, ..options };
    assert_eq!(run(256, &interrupted, 0).0, StopReason::Interrupted);
}

/// One session for all prompts: each reuses what it has in common with the one before.
#[test]
fn greedy_outputs_token_for_token() {
    for backend in backends() {
        for stem in ["q4_k_m", "q8_0"] {
            check(backend.as_ref(), stem, 1, false);
            if backend.name() == "cpu" {
                check(backend.as_ref(), stem, 2, false);
                check(backend.as_ref(), stem, 1, true);
            }
        }
    }
}

/// A text that is sampled from the backend's candidates, or from all its logits.
fn sampled(
    session: &mut Session,
    prompt: &[TokenId],
    options: SamplerOptions,
    candidates: bool,
) -> Vec<TokenId> {
    session.truncate(0).unwrap();
    session.feed(prompt, LogitsRows::Last, None, |_, _| Ok(())).unwrap();
    let mut sampler = Sampler::new(options).unwrap();
    let (mut best, mut logits) = (Vec::new(), Vec::new());
    let mut output = Vec::new();
    for _ in 0..12 {
        let chosen = sampler.candidates_wanted().filter(|_| candidates).and_then(|count| {
            session.candidates(count, &mut best).unwrap();
            sampler.sample_candidates(&best, session.tokens()).unwrap()
        });
        let token = chosen.unwrap_or_else(|| {
            session.logits(&mut logits).unwrap();
            sampler.sample(&logits, session.tokens()).unwrap()
        });
        output.push(token);
        session.decode(token, None).unwrap();
    }
    output
}

/// The same seed gives the same text, whichever way the logits come: with the candidates chosen in the step (they were
/// expected), behind it, and of all sizes.
#[test]
fn candidates_give_the_text_that_all_logits_give() {
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let prompt = [3070, 303, 198, 354, 294, 220, 17, 10, 17, 30, 3071, 198, 3070, 304, 198].map(TokenId);
    for backend in backends() {
        let options = CompileOptions { ctx_size: 64, threads: Some(1), ..CompileOptions::default() };
        let executable = backend.compile(&model.graph, model.file.clone(), &options).unwrap();
        let mut session = Session::new(executable).unwrap();
        let mut texts = std::collections::HashSet::new();
        for (i, (top_k, repetition_penalty)) in
            [(2, 1.0), (20, 1.0), (128, 1.0), (20, 1.3)].into_iter().enumerate()
        {
            let options = SamplerOptions {
                temperature: 2.5,
                top_k,
                top_p: [1.0, 0.9][i % 2],
                min_p: 0.001,
                repetition_penalty,
                seed: 5 + i as u64,
            };
            session.executable().expect_candidates([1, top_k][i % 2]);
            let found = sampled(&mut session, &prompt, options, true);
            assert_eq!(
                found,
                sampled(&mut session, &prompt, options, false),
                "{}, top-k {top_k}",
                backend.name()
            );
            texts.insert(found);
        }
        // Two seeds may well draw the same text: the model is sure of most of it.
        assert!(texts.len() >= 2, "{}: hardly anything was random", backend.name());
    }
}

/// A step that was queued for nothing leaves no trace: another token, a shorter context, a watched step.
#[test]
fn what_was_queued_can_be_dropped() {
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let prompt = [3070, 303, 198, 354, 294, 220, 17, 10, 17, 30, 3071, 198, 3070, 304, 198].map(TokenId);
    for backend in backends() {
        let options = CompileOptions { ctx_size: 17, threads: Some(1), ..CompileOptions::default() };
        let executable = backend.compile(&model.graph, model.file.clone(), &options).unwrap();
        let mut session = Session::new(executable).unwrap();
        let logits = |session: &mut Session, queue: bool| {
            session.truncate(0).unwrap();
            session.feed(&prompt, LogitsRows::Last, None, |_, _| Ok(())).unwrap();
            let queued = queue && session.queue_next().unwrap();
            let mut out = Vec::new();
            if queued {
                let error = session.logits(&mut out).unwrap_err();
                assert!(error.to_string().contains("queued"), "{error}");
            }
            session.decode(TokenId(5), None).unwrap();
            session.logits(&mut out).unwrap();
            // The context's last place, and behind it none.
            let second = session.argmax().unwrap();
            if queue {
                session.queue_next().unwrap();
            }
            assert_eq!(session.argmax().unwrap(), second);
            session.decode(second, None).unwrap();
            assert!(!session.queue_next().unwrap());
            let mut last = Vec::new();
            session.logits(&mut last).unwrap();
            out.extend(last);
            out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let queued = logits(&mut session, true);
        assert_eq!(queued, logits(&mut session, false), "{}", backend.name());
    }
}
