//! `/v1/completions`.

use hyper::Response;
use hyper::body::Bytes;
use moe_run_graph::ids::TokenId;
use moe_run_runtime::engine::Chosen;
use moe_run_runtime::generate::Constraint;
use moe_run_text::chat::kind;
use serde_json::{Map, Value, json};
use std::sync::Arc;

use crate::answer::{self, Shape};
use crate::error::ApiError;
use crate::fields::{Fields, missing, wrong_type};
use crate::form::Held;
use crate::listener::{Finished, Piece};
use crate::model::{Model, Prompt};
use crate::openai::{self, REFUSED, Tokens, finite, new_id};
use crate::record::Record;
use crate::respond::{self, Body};
use crate::sampling::{MAX_TOP_LOGPROBS, Sampling, max_tokens};
use crate::server::{FINGERPRINT, Server};
use crate::taps;

/// What OpenAI generates where a request does not say.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Prompts of one request at most.
const MAX_PROMPTS: usize = 128;

/// `stream`, and whether `stream_options` asks for the usage.
///
/// Errors: wrong types; options of a stream that is none.
pub fn stream_options(fields: &mut Fields) -> Result<(bool, bool), ApiError> {
    let streams = fields.bool("stream")?.unwrap_or(false);
    let Some(options) = fields.object("stream_options")? else { return Ok((streams, false)) };
    if !streams {
        return Err(ApiError::field("stream_options", "invalid_value", "wanted \"stream\": true beside it"));
    }
    match options.get("include_usage") {
        None | Some(Value::Null) => Ok((true, false)),
        Some(Value::Bool(includes)) => Ok((true, *includes)),
        Some(other) => Err(wrong_type("stream_options.include_usage", other, "true or false")),
    }
}

/// What is asked.
struct Asked {
    prompts: Vec<Prompt>,
    sampling: Sampling,
    constraints: Vec<Box<dyn Constraint>>,
    streams: bool,
    includes_usage: bool,
    echoes: bool,
}

impl Asked {
    fn read(mut fields: Fields, model: &Model) -> Result<Asked, ApiError> {
        fields.string("model")?;
        fields.refuse(REFUSED)?;
        fields.refuse(&[("suffix", "text is not filled in", |value| value == "")])?;
        let (streams, includes_usage) = stream_options(&mut fields)?;
        let mut sampling = Sampling::read(&mut fields, model)?;
        sampling.max_tokens = Some(max_tokens(&mut fields, "max_tokens")?.unwrap_or(DEFAULT_MAX_TOKENS));
        sampling.choose.logprobs = fields.integer("logprobs", 0..=MAX_TOP_LOGPROBS)?.map(|top| top as usize);
        if sampling.wants_routing {
            return Err(ApiError::unsupported("routing", "chats tell it: ask /v1/chat/completions"));
        }
        let echoes = fields.bool("echo")?.unwrap_or(false);
        if echoes && sampling.choose.logprobs.is_some() {
            return Err(ApiError::unsupported(
                "echo",
                "with log probabilities; those of a prompt are not computed",
            ));
        }
        let prompts = prompts(fields.take("prompt").ok_or_else(|| missing("prompt"))?, model)?;
        let constraints = sampling.constrain(Held::raw(sampling.form.clone()), prompts.len(), model)?;
        Ok(Asked { prompts, sampling, constraints, streams, includes_usage, echoes })
    }
}

/// A text, ids, or an array of either.
fn prompts(value: Value, model: &Model) -> Result<Vec<Prompt>, ApiError> {
    const WANTED: &str = "a string, an array of strings, an array of token ids, or an array of those";
    let items = match value {
        Value::String(text) => return Ok(vec![model.raw_prompt(text)?]),
        Value::Array(items) => items,
        other => return Err(wrong_type("prompt", &other, WANTED)),
    };
    if items.is_empty() || items.iter().all(Value::is_number) {
        return Ok(vec![model.token_prompt(ids(&items, "prompt")?)?]);
    }
    if items.len() > MAX_PROMPTS {
        let message = format!("found {} prompts, wanted {MAX_PROMPTS} at most", items.len());
        return Err(ApiError::field("prompt", "invalid_value", message));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(at, item)| match item {
            Value::String(text) => model.raw_prompt(text),
            Value::Array(items) => model.token_prompt(ids(&items, &format!("prompt[{at}]"))?),
            other => Err(wrong_type(format!("prompt[{at}]"), &other, WANTED)),
        })
        .collect()
}

/// Token ids.
///
/// Errors: something else is among them.
pub fn ids(items: &[Value], name: &str) -> Result<Vec<TokenId>, ApiError> {
    let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok()).map(TokenId);
    items
        .iter()
        .map(|item| {
            id(item).ok_or_else(|| {
                let found = if item.is_number() { item.to_string() } else { kind(item).to_owned() };
                ApiError::field(name, "invalid_value", format!("found {found}, wanted token ids"))
            })
        })
        .collect()
}

/// Answers a request.
///
/// Errors: what is wrong with it.
pub async fn completions(
    server: &Arc<Server>,
    body: Bytes,
    record: &mut Option<Record>,
) -> Result<Response<Body>, ApiError> {
    let (model, asked) = server.asked(body, Asked::read).await?;
    let Asked { prompts, sampling, constraints, streams, includes_usage, echoes } = asked;
    let receiver = model.submit(&prompts, &sampling, false, constraints)?;
    let count = prompts.len() * sampling.n;
    let echo =
        |choice: usize| prompts.get(choice / sampling.n).filter(|_| echoes).map(|prompt| prompt.text.clone());
    let shape = Completions {
        id: new_id("cmpl-"),
        created: openai::now(),
        name: server.config.name.clone(),
        wants_logprobs: sampling.choose.logprobs.is_some(),
        wants_taps: !sampling.taps.0.is_empty(),
        streams,
        includes_usage,
        n: sampling.n,
        choices: (0..count)
            .map(|choice| Choice { text: echo(choice).unwrap_or_default(), ..Choice::default() })
            .collect(),
        tokens: Tokens::default(),
        model: Arc::clone(&model),
    };
    answer::give(shape, receiver, count, streams, record).await
}

/// What is kept of a choice.
#[derive(Debug, Default)]
struct Choice {
    text: String,
    logprobs: Logprobs,
    /// Characters of the tokens until now.
    characters: usize,
    finish_reason: Option<&'static str>,
    tapped: Option<Value>,
}

/// Log probabilities, as completions have them.
#[derive(Debug, Default)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl Logprobs {
    fn json(self) -> Value {
        let Logprobs { tokens, token_logprobs, top_logprobs, text_offset } = self;
        json!({
            "tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": top_logprobs, "text_offset": text_offset,
        })
    }
}

/// OpenAI's shape.
struct Completions {
    id: String,
    created: u64,
    name: String,
    wants_logprobs: bool,
    wants_taps: bool,
    streams: bool,
    includes_usage: bool,
    /// Choices of each prompt.
    n: usize,
    choices: Vec<Choice>,
    tokens: Tokens,
    model: Arc<Model>,
}

impl Completions {
    fn object(&self, choices: Value) -> Value {
        json!({
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.name,
            "system_fingerprint": FINGERPRINT, "choices": choices,
        })
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = self.object(choices);
        if self.includes_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn part(&self, index: usize, text: &str, logprobs: Value, finish_reason: Option<&str>) -> Bytes {
        self.data(json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}))
    }

    fn data(&self, choice: Value) -> Bytes {
        respond::data(&self.chunk(Value::Array(vec![choice])))
    }

    /// A token as text; one that is no whole characters as its bytes.
    fn token_text(&self, token: TokenId) -> String {
        let bytes = self.model.tokenizer.piece(token).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_else(|error| {
            let bytes: String = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{bytes}")
        })
    }

    fn logprobs(&self, tokens: &[Chosen], characters: &mut usize) -> Logprobs {
        let mut all = Logprobs::default();
        for chosen in tokens {
            let text = self.token_text(chosen.token);
            all.text_offset.push(*characters);
            *characters += text.chars().count();
            all.token_logprobs.push(finite(chosen.logprob.unwrap_or(f32::NEG_INFINITY)));
            let top: Map<String, Value> =
                chosen.top.iter().map(|(token, p)| (self.token_text(*token), json!(finite(*p)))).collect();
            all.top_logprobs.push(Value::Object(top));
            all.tokens.push(text);
        }
        all
    }
}

impl Shape for Completions {
    fn begin(&mut self) -> Vec<Bytes> {
        let echoed = self.choices.iter().enumerate().filter(|(_, choice)| !choice.text.is_empty());
        echoed.map(|(index, choice)| self.part(index, &choice.text, Value::Null, None)).collect()
    }

    fn piece(&mut self, index: usize, piece: Piece) -> Vec<Bytes> {
        let Some(choice) = self.choices.get(index) else { return Vec::new() };
        let mut characters = choice.characters;
        let logprobs = match self.wants_logprobs {
            true => self.logprobs(&piece.tokens, &mut characters),
            false if self.streams && piece.text.is_empty() => return Vec::new(),
            false => Logprobs::default(),
        };
        if self.streams {
            let logprobs = if self.wants_logprobs { logprobs.json() } else { Value::Null };
            if let Some(choice) = self.choices.get_mut(index) {
                choice.characters = characters;
            }
            return vec![self.part(index, &piece.text, logprobs, None)];
        }
        if let Some(choice) = self.choices.get_mut(index) {
            choice.characters = characters;
            choice.text.push_str(&piece.text);
            choice.logprobs.tokens.extend(logprobs.tokens);
            choice.logprobs.token_logprobs.extend(logprobs.token_logprobs);
            choice.logprobs.top_logprobs.extend(logprobs.top_logprobs);
            choice.logprobs.text_offset.extend(logprobs.text_offset);
        }
        Vec::new()
    }

    fn end(&mut self, index: usize, finished: Finished) -> Vec<Bytes> {
        self.tokens.add(&finished.ended.usage, index.is_multiple_of(self.n), 0);
        let reason = if finished.is_complete() { "stop" } else { "length" };
        let tapped = self.wants_taps.then(|| taps::told(&finished.ended.tapped));
        if self.streams {
            let mut choice = json!({"index": index, "text": "", "logprobs": null, "finish_reason": reason});
            if let Some(tapped) = tapped {
                choice["taps"] = tapped;
            }
            return vec![self.data(choice)];
        }
        if let Some(choice) = self.choices.get_mut(index) {
            choice.tapped = tapped;
            choice.finish_reason = Some(reason);
        }
        Vec::new()
    }

    fn finish(&mut self) -> Vec<Bytes> {
        self.tokens.end_of_stream(self.includes_usage.then(|| self.chunk(json!([]))))
    }

    fn error(&self, error: &ApiError) -> Bytes {
        respond::data(&error.openai())
    }

    fn whole(mut self) -> Value {
        let wants_logprobs = self.wants_logprobs;
        let choices = std::mem::take(&mut self.choices).into_iter().enumerate().map(|(index, choice)| {
            let Choice { text, logprobs, characters: _, finish_reason, tapped } = choice;
            let logprobs = if wants_logprobs { logprobs.json() } else { Value::Null };
            let mut told =
                json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason});
            if let Some(tapped) = tapped {
                told["taps"] = tapped;
            }
            told
        });
        let mut whole = self.object(choices.collect());
        whole["usage"] = self.tokens.json();
        whole
    }
}
