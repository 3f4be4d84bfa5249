//! `moe-run serve` over plain sockets: the APIs' shapes, streams that say what whole answers say, refusals by name, many clients with
//! the bits of one, and its end.

mod apis;
mod clients;
mod operation;
mod refusals;
mod taps;

use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_moe-run-under-test");
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn question(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// A body with further fields.
fn with(mut body: Value, fields: &Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// The choices that a stream's chunks make together: text, tokens of log probabilities, reason.
fn joined(events: &[Value]) -> Vec<(String, Vec<Value>, String)> {
    let mut choices: Vec<(String, Vec<Value>, String)> = Vec::new();
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        let index = choice["index"].as_u64().unwrap() as usize;
        if choices.len() <= index {
            choices.resize(index + 1, Default::default());
        }
        let (text, logprobs, reason) = &mut choices[index];
        text.push_str(choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default());
        logprobs.extend(choice["logprobs"]["content"].as_array().cloned().unwrap_or_default());
        if let Some(tokens) = choice["logprobs"]["tokens"].as_array() {
            let values = choice["logprobs"]["token_logprobs"].as_array().unwrap();
            let offsets = choice["logprobs"]["text_offset"].as_array().unwrap();
            logprobs.extend((0..tokens.len()).map(|i| json!([tokens[i], values[i], offsets[i]])));
        }
        if let Some(found) = choice["finish_reason"].as_str() {
            assert!(reason.is_empty(), "a choice ends once");
            reason.push_str(found);
        }
    }
    choices
}

/// The same of a whole answer.
fn whole(answer: &Value) -> Vec<(String, Vec<Value>, String)> {
    let mut as_chunk = answer.clone();
    for choice in as_chunk["choices"].as_array_mut().unwrap() {
        if let Some(message) = choice.get("message").cloned() {
            choice["delta"] = message;
        }
    }
    joined(&[as_chunk])
}
