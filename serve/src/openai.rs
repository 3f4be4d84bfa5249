//! What OpenAI's endpoints have in common: ids, usage, log probabilities, and the fields that are refused.

use hyper::body::Bytes;
use moe_run_graph::ids::TokenId;
use moe_run_runtime::engine::{Chosen, Usage};
use moe_run_text::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::fields::{Refusal, if_empty, never};
use crate::respond;

/// What a log probability of minus infinity is said as: JSON has no infinities.
const LEAST_LOGPROB: f32 = -9999.0;

/// Fields that would change the answer, and are not heeded by any endpoint.
pub const REFUSED: &[Refusal] = &[
    ("min_tokens", "an answer ends where the model ends it", if_empty),
    ("mirostat", "the sampler has no Mirostat", if_empty),
    ("dry_multiplier", "the sampler has no DRY", if_empty),
    ("xtc_probability", "the sampler has no XTC", if_empty),
    ("typical_p", "the sampler has no typical sampling", |value| value.as_f64() == Some(1.0)),
    ("best_of", "ask for n choices", |value| value.as_i64() == Some(1)),
];

/// What chats and completions tell of a pass, and other endpoints do not.
pub const TOLD_IN_CHAT: &[Refusal] = &[
    ("routing", "chats tell it: ask /v1/chat/completions", if_empty),
    ("taps", "chats and completions tell them: ask /v1/chat/completions", if_empty),
];

/// Those of the chat alone.
pub const REFUSED_IN_CHAT: &[Refusal] = &[
    ("functions", "the older form of \"tools\"", if_empty),
    ("function_call", "the older form of \"tool_choice\"", |value| value == "none" || value == "auto"),
    ("audio", "answers are text", never),
    ("modalities", "answers are text", |value| *value == json!(["text"])),
    ("prediction", "an answer is not compared with a prediction", never),
    ("web_search_options", "nothing is looked up", never),
    ("verbosity", "the model decides it", |value| value == "medium"),
    ("echo", "a chat's prompt is not repeated", if_empty),
];

/// A new id.
pub fn new_id(prefix: &str) -> String {
    let half = || RandomState::new().build_hasher().finish();
    format!("{prefix}{:016x}{:08x}", half(), half() as u32)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// What a request took, over its choices.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tokens {
    prompt: usize,
    cached: usize,
    output: usize,
    reasoning: usize,
}

impl Tokens {
    /// Adds a choice; of those of one prompt the first counts the prompt.
    pub fn add(&mut self, usage: &Usage, is_first_of_prompt: bool, reasoning: usize) {
        self.output += usage.output_tokens;
        self.reasoning += reasoning;
        if is_first_of_prompt {
            self.prompt += usage.prompt_tokens;
            self.cached += usage.cached_tokens;
        }
    }

    /// The object of OpenAI's chats and completions.
    pub fn json(&self) -> Value {
        let Tokens { prompt, cached, output, reasoning } = self;
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        })
    }
}

impl Tokens {
    /// What stands behind the last choice of a stream: the usage in a chunk without choices, where it is asked for, and the mark.
    pub fn end_of_stream(&self, chunk: Option<Value>) -> Vec<Bytes> {
        let with_usage = |mut chunk: Value| {
            chunk["usage"] = self.json();
            respond::data(&chunk)
        };
        chunk.map(with_usage).into_iter().chain([respond::done()]).collect()
    }

    /// The object of OpenAI's responses.
    pub fn of_response(&self) -> Value {
        let Tokens { prompt, cached, output, reasoning } = self;
        json!({
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": prompt + output,
        })
    }
}

/// A log probability that JSON can hold.
pub fn finite(logprob: f32) -> f32 {
    logprob.max(LEAST_LOGPROB)
}

/// Tokens with their log probabilities, as chat answers have them.
pub fn logprobs(tokenizer: &Tokenizer, tokens: &[Chosen]) -> Vec<Value> {
    let one = |token: TokenId, logprob: f32| {
        let bytes = tokenizer.piece(token).unwrap_or_default();
        json!({"token": String::from_utf8_lossy(&bytes), "logprob": finite(logprob), "bytes": bytes})
    };
    tokens
        .iter()
        .map(|chosen| {
            let mut entry = one(chosen.token, chosen.logprob.unwrap_or(LEAST_LOGPROB));
            entry["top_logprobs"] = chosen.top.iter().map(|(token, p)| one(*token, *p)).collect();
            entry
        })
        .collect()
}

/// Tokens with the experts of the passes that chose them, by layer.
pub fn routing(tokens: &[Chosen]) -> Vec<Value> {
    let of_token = |chosen: &Chosen| {
        let layers: Map<String, Value> =
            chosen.experts.iter().map(|(layer, experts)| (layer.to_string(), json!(experts))).collect();
        json!({"token": chosen.token.0, "layers": layers})
    };
    tokens.iter().map(of_token).collect()
}
