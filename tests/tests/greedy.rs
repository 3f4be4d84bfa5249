//! Greedy outputs of the tiny model, token for token, on every backend, with one thread and two.

use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Backend, CompileOptions};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_tests::{backends, fixtures};
use serde_json::Value;

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect()
}

/// The tokens after the prompt, the end token excluded.
fn generate(session: &mut Session, prompt: &[TokenId], end: TokenId, max_tokens: usize) -> Vec<TokenId> {
    let keep = session.reuse_prefix(prompt).unwrap();
    session.feed(&prompt[keep..], LogitsRows::Last, None, |_, _| Ok(())).unwrap();
    let mut output = Vec::new();
    while output.len() < max_tokens {
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
    for case in cases[stem].as_array().unwrap() {
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
