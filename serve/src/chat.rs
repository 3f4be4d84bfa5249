//! `/v1/chat/completions`.

use hyper::Response;
use hyper::body::Bytes;
use moe_run_runtime::generate::Constraint;
use moe_run_text::toolcalls::Delta;
use serde_json::{Value, json};
use std::sync::Arc;

use crate::answer::{self, Shape};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::form::Held;
use crate::listener::{Finished, Piece};
use crate::model::{Model, Prompt};
use crate::openai::{self, REFUSED, REFUSED_IN_CHAT, Tokens, new_id};
use crate::record::Record;
use crate::respond::{self, Body};
use crate::sampling::{MAX_TOP_LOGPROBS, Sampling, max_tokens};
use crate::server::{FINGERPRINT, Server};
use crate::taps;
use crate::writer::Writer;
use crate::{completions::stream_options, messages};

/// What is asked.
struct Asked {
    prompt: Prompt,
    sampling: Sampling,
    constraints: Vec<Box<dyn Constraint>>,
    streams: bool,
    includes_usage: bool,
    writers: Vec<Writer>,
}

impl Asked {
    fn read(mut fields: Fields, model: &Model) -> Result<Asked, ApiError> {
        fields.string("model")?;
        fields.refuse(REFUSED)?;
        fields.refuse(REFUSED_IN_CHAT)?;
        let (streams, includes_usage) = stream_options(&mut fields)?;
        let mut sampling = Sampling::read(&mut fields, model)?;
        let limit = max_tokens(&mut fields, "max_completion_tokens")?;
        sampling.max_tokens = limit.or(max_tokens(&mut fields, "max_tokens")?);
        let wants_logprobs = fields.bool("logprobs")?.unwrap_or(false);
        let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
        if top.is_some() && !wants_logprobs {
            return Err(ApiError::field(
                "top_logprobs",
                "invalid_value",
                "wanted \"logprobs\": true beside it",
            ));
        }
        sampling.choose.logprobs = wants_logprobs.then_some(top.unwrap_or(0) as usize);
        let conversation = messages::read(&mut fields, model.template()?)?;
        let prompt = model.render(&conversation)?;
        let held = Held::chat(sampling.form.take(), &conversation, &prompt, model)?;
        let constraints = sampling.constrain(held, 1, model)?;
        let syntax = model.syntax()?;
        let writer = || Writer::new(syntax, &prompt.text, &conversation.tools, streams);
        let writers = (0..sampling.n).map(|_| writer()).collect();
        Ok(Asked { prompt, sampling, constraints, streams, includes_usage, writers })
    }
}

/// Answers a request.
///
/// Errors: what is wrong with it.
pub async fn chat(
    server: &Arc<Server>,
    body: Bytes,
    record: &mut Option<Record>,
) -> Result<Response<Body>, ApiError> {
    let (model, asked) = server.asked(body, Asked::read).await?;
    let Asked { prompt, sampling, constraints, streams, includes_usage, writers } = asked;
    let receiver =
        model.submit(std::slice::from_ref(&prompt), &sampling, model.spells_control(), constraints)?;
    let id = new_id("chatcmpl-");
    let shape = Chat {
        id,
        created: openai::now(),
        name: server.config.name.clone(),
        wants_logprobs: sampling.choose.logprobs.is_some(),
        wants_routing: sampling.wants_routing,
        wants_taps: !sampling.taps.0.is_empty(),
        streams,
        includes_usage,
        choices: writers.into_iter().map(Choice::new).collect(),
        tokens: Tokens::default(),
        model: Arc::clone(&model),
    };
    answer::give(shape, receiver, sampling.n, streams, record).await
}

/// A choice: how it is read, and what is kept of it for the whole answer.
#[derive(Debug)]
struct Choice {
    writer: Writer,
    content: String,
    reasoning: String,
    calls: Vec<Value>,
    logprobs: Vec<Value>,
    routing: Vec<Value>,
    tapped: Option<Value>,
    finish_reason: Option<&'static str>,
}

impl Choice {
    fn new(writer: Writer) -> Choice {
        Choice {
            writer,
            content: String::new(),
            reasoning: String::new(),
            calls: Vec::new(),
            logprobs: Vec::new(),
            routing: Vec::new(),
            tapped: None,
            finish_reason: None,
        }
    }

    /// Keeps deltas for the whole answer.
    fn keep(&mut self, deltas: Vec<Delta>) {
        for delta in deltas {
            match delta {
                Delta::Content(text) => self.content.push_str(&text),
                Delta::Reasoning(text) => self.reasoning.push_str(&text),
                Delta::CallBegin { index, name } => {
                    let id = self.writer.call_id(index, &name);
                    let function = json!({"name": name, "arguments": ""});
                    self.calls.push(json!({"id": id, "type": "function", "function": function}));
                }
                Delta::CallArguments { text, .. } => {
                    if let Some(Value::String(arguments)) =
                        self.calls.last_mut().and_then(|call| call.pointer_mut("/function/arguments"))
                    {
                        arguments.push_str(&text);
                    }
                }
                Delta::CallEnd { .. } => {}
            }
        }
    }

    /// Deltas as OpenAI streams them.
    fn stream(&self, deltas: Vec<Delta>) -> Vec<Value> {
        let part = |delta| match delta {
            Delta::Content(text) => Some(json!({"content": text})),
            Delta::Reasoning(text) => Some(json!({"reasoning_content": text})),
            Delta::CallBegin { index, name } => {
                let id = self.writer.call_id(index, &name);
                let function = json!({"name": name, "arguments": ""});
                Some(
                    json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]}),
                )
            }
            Delta::CallArguments { index, text } => {
                Some(json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]}))
            }
            Delta::CallEnd { .. } => None,
        };
        deltas.into_iter().filter_map(part).collect()
    }

    fn message(&mut self) -> Value {
        let (content, reasoning) = (std::mem::take(&mut self.content), std::mem::take(&mut self.reasoning));
        let calls = std::mem::take(&mut self.calls);
        let content =
            if content.is_empty() && !calls.is_empty() { Value::Null } else { Value::String(content) };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !reasoning.is_empty() {
            message["reasoning_content"] = Value::String(reasoning);
        }
        if !calls.is_empty() {
            message["tool_calls"] = Value::Array(calls);
        }
        message
    }
}

/// OpenAI's shape.
struct Chat {
    id: String,
    created: u64,
    name: String,
    wants_logprobs: bool,
    wants_routing: bool,
    wants_taps: bool,
    streams: bool,
    includes_usage: bool,
    choices: Vec<Choice>,
    tokens: Tokens,
    model: Arc<Model>,
}

impl Chat {
    fn head(&self, object: &str) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.name,
            "system_fingerprint": FINGERPRINT,
        })
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = self.head("chat.completion.chunk");
        chunk["choices"] = choices;
        if self.includes_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn delta(&self, choice: usize, delta: Value, finish_reason: Option<&str>) -> Bytes {
        self.part(choice, delta, Value::Null, &[], finish_reason)
    }

    fn part(
        &self,
        choice: usize,
        delta: Value,
        logprobs: Value,
        more: &[(&str, Value)],
        finish_reason: Option<&str>,
    ) -> Bytes {
        let mut choice =
            json!({"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason});
        for (name, value) in more {
            choice[name] = value.clone();
        }
        respond::data(&self.chunk(json!([choice])))
    }
}

impl Shape for Chat {
    fn begin(&mut self) -> Vec<Bytes> {
        let role = || json!({"role": "assistant", "content": "", "refusal": null});
        (0..self.choices.len()).map(|choice| self.delta(choice, role(), None)).collect()
    }

    fn piece(&mut self, index: usize, piece: Piece) -> Vec<Bytes> {
        let entries = match self.wants_logprobs {
            true => openai::logprobs(&self.model.tokenizer, &piece.tokens),
            false => Vec::new(),
        };
        let Some(choice) = self.choices.get_mut(index) else { return Vec::new() };
        let deltas = choice.writer.push(&piece);
        let routing = if self.wants_routing { openai::routing(&piece.tokens) } else { Vec::new() };
        if !self.streams {
            choice.keep(deltas);
            choice.logprobs.extend(entries);
            choice.routing.extend(routing);
            return Vec::new();
        }
        let mut parts = choice.stream(deltas);
        if parts.is_empty() && !(entries.is_empty() && routing.is_empty()) {
            parts.push(json!({"content": ""}));
        }
        // All tokens of the piece stand beside its first part.
        let mut logprobs = self.wants_logprobs.then(|| json!({"content": entries, "refusal": null}));
        let mut routing: Vec<_> =
            (!routing.is_empty()).then(|| ("routing", Value::Array(routing))).into_iter().collect();
        let part = |delta| {
            let (logprobs, routing) = (logprobs.take(), std::mem::take(&mut routing));
            self.part(index, delta, logprobs.unwrap_or(Value::Null), &routing, None)
        };
        parts.into_iter().map(part).collect()
    }

    fn end(&mut self, index: usize, finished: Finished) -> Vec<Bytes> {
        let Some(choice) = self.choices.get_mut(index) else { return Vec::new() };
        let deltas = choice.writer.finish(finished.is_complete());
        self.tokens.add(&finished.ended.usage, index == 0, choice.writer.reasoning_tokens());
        let reason = match finished.is_complete() {
            true if choice.writer.has_calls() => "tool_calls",
            true => "stop",
            false => "length",
        };
        let tapped = self.wants_taps.then(|| taps::told(&finished.ended.tapped));
        if !self.streams {
            choice.keep(deltas);
            choice.tapped = tapped;
            choice.finish_reason = Some(reason);
            return Vec::new();
        }
        let parts = choice.stream(deltas);
        let mut parts: Vec<Bytes> = parts.into_iter().map(|delta| self.delta(index, delta, None)).collect();
        let tapped: Vec<_> = tapped.map(|tapped| ("taps", tapped)).into_iter().collect();
        parts.push(self.part(index, json!({}), Value::Null, &tapped, Some(reason)));
        parts
    }

    fn finish(&mut self) -> Vec<Bytes> {
        self.tokens.end_of_stream(self.includes_usage.then(|| self.chunk(json!([]))))
    }

    fn error(&self, error: &ApiError) -> Bytes {
        respond::data(&error.openai())
    }

    fn whole(mut self) -> Value {
        let (wants_logprobs, wants_routing) = (self.wants_logprobs, self.wants_routing);
        let choices = self.choices.iter_mut().enumerate().map(|(index, choice)| {
            let logprobs = match wants_logprobs {
                true => json!({"content": std::mem::take(&mut choice.logprobs), "refusal": null}),
                false => Value::Null,
            };
            let (message, finish_reason) = (choice.message(), choice.finish_reason);
            let mut told =
                json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason});
            if wants_routing {
                told["routing"] = Value::Array(std::mem::take(&mut choice.routing));
            }
            if let Some(tapped) = choice.tapped.take() {
                told["taps"] = tapped;
            }
            told
        });
        let choices: Value = choices.collect();
        let mut whole = self.head("chat.completion");
        whole["choices"] = choices;
        whole["usage"] = self.tokens.json();
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::Tools;
    use moe_run_graph::ids::TokenId;
    use moe_run_runtime::engine::Chosen;
    use moe_run_text::{chat::ChatTemplate, toolcalls::Syntax};

    /// A template that shows calls in JSON between tags, and reasoning.
    fn writer(one_call: bool) -> Writer {
        let template = "{% for m in messages %}<think>{{ m.reasoning_content }}</think>{{ m.content }}{% for c in m.tool_calls %}\
                        <tool_call>{{ c | tojson }}</tool_call>{% endfor %}{% endfor %}";
        let syntax = Syntax::of(&ChatTemplate::from_source(template).unwrap());
        Writer::new(&syntax, "Hi", &Tools { one_call, ..Tools::default() }, true)
    }

    fn piece(text: &str) -> Piece {
        let token = Chosen { token: TokenId(0), logprob: None, top: Vec::new(), experts: Vec::new() };
        Piece { text: text.to_owned(), tokens: vec![token] }
    }

    const TEXT: &str = "<think>Hm.</think>I look.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": \"é\"}}\n</tool_call>\n\
                        <tool_call>\n{\"name\": \"b\", \"arguments\": {}}\n</tool_call>";

    #[test]
    fn calls_and_reasoning_are_told_whole_and_in_parts() {
        for (one_call, names) in [(false, &["a", "b"][..]), (true, &["a"])] {
            let mut whole = Choice::new(writer(one_call));
            let deltas = [whole.writer.push(&piece(TEXT)), whole.writer.finish(true)].concat();
            whole.keep(deltas);
            let message = whole.message();
            assert_eq!(
                (&message["content"], &message["reasoning_content"]),
                (&json!("I look."), &json!("Hm."))
            );
            let calls = message["tool_calls"].as_array().unwrap();
            assert_eq!(
                calls.iter().map(|c| c["function"]["name"].as_str().unwrap()).collect::<Vec<_>>(),
                names
            );
            let arguments: Value =
                serde_json::from_str(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap();
            assert_eq!(arguments, json!({"x": "é"}));
            assert!(calls[0]["id"].as_str().unwrap().starts_with("call_") && calls[0]["type"] == "function");

            let mut streamed = Choice::new(writer(one_call));
            let (mut content, mut reasoning, mut arguments) =
                (String::new(), String::new(), vec![String::new(); 2]);
            let mut begun = Vec::new();
            let pieces: Vec<String> = TEXT.chars().map(String::from).collect();
            let mut deltas: Vec<Delta> =
                pieces.iter().flat_map(|text| streamed.writer.push(&piece(text))).collect();
            deltas.extend(streamed.writer.finish(true));
            for part in streamed.stream(deltas) {
                content.push_str(part["content"].as_str().unwrap_or_default());
                reasoning.push_str(part["reasoning_content"].as_str().unwrap_or_default());
                for call in part["tool_calls"].as_array().into_iter().flatten() {
                    let index = call["index"].as_u64().unwrap() as usize;
                    begun.extend(call["function"]["name"].as_str().map(str::to_owned));
                    arguments[index].push_str(call["function"]["arguments"].as_str().unwrap());
                }
            }
            assert_eq!((content.as_str(), reasoning.as_str()), ("I look.", "Hm."));
            assert_eq!(begun, names);
            assert_eq!(Value::from(arguments[0].as_str()), calls[0]["function"]["arguments"]);
            assert!(streamed.writer.has_calls());
            assert_eq!(streamed.writer.reasoning_tokens(), "<think>Hm.".len());
        }
    }
}
