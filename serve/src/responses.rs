//! `/v1/responses`: OpenAI's newer API, stateless: every request has the whole conversation.
//!
//! A request becomes the messages that a chat template reads; `responses_shape` makes the response of what comes.

use hyper::Response;
use hyper::body::Bytes;
use moe_run_runtime::generate::Constraint;
use moe_run_text::chat::ChatTemplate;
use serde_json::{Map, Value, json};
use std::sync::Arc;

use crate::answer;
use crate::error::ApiError;
use crate::fields::{Fields, Refusal, if_empty, missing, never, wrong_type};
use crate::form::{Form, Held};
use crate::messages::{Conversation, prepare, template_variables};
use crate::model::{Model, Prompt};
use crate::openai::{REFUSED, TOLD_IN_CHAT};
use crate::record::Record;
use crate::respond::Body;
use crate::responses_shape::Answer;
use crate::sampling::{MAX_TOP_LOGPROBS, Sampling, max_tokens};
use crate::server::Server;
use crate::tools::Tools;
use crate::writer::Writer;

/// Fields that would change the answer, and are not heeded.
const REFUSED_HERE: &[Refusal] = &[
    ("previous_response_id", "nothing is kept: send the whole conversation", never),
    ("conversation", "nothing is kept: send the whole conversation", never),
    ("prompt", "nothing is kept: send the whole conversation", never),
    ("background", "a response is given where it is asked for", if_empty),
    ("truncation", "a conversation that is too long is refused", |value| value == "disabled"),
    ("max_tool_calls", "the client calls tools", never),
    ("context_management", "a conversation is taken as it is", if_empty),
];

/// What an answer's fields repeat of the request, as it was sent.
pub const REPEATED: [&str; 12] = [
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "reasoning",
    "safety_identifier",
    "prompt_cache_key",
    "temperature",
    "text",
    "tool_choice",
    "top_logprobs",
    "top_p",
];

/// What is asked.
struct Asked {
    prompt: Prompt,
    sampling: Sampling,
    constraints: Vec<Box<dyn Constraint>>,
    streams: bool,
    writer: Writer,
    repeated: Map<String, Value>,
}

impl Asked {
    fn read(mut fields: Fields, model: &Model) -> Result<Asked, ApiError> {
        let asked = |name: &str| fields.get(name).cloned();
        let mut repeated: Map<String, Value> =
            REPEATED.iter().filter_map(|name| Some(((*name).to_owned(), asked(name)?))).collect();
        repeated.insert("tools".to_owned(), asked("tools").unwrap_or_else(|| json!([])));
        fields.string("model")?;
        fields.refuse(REFUSED)?;
        fields.refuse(REFUSED_HERE)?;
        fields.refuse(TOLD_IN_CHAT)?;
        let streams = fields.bool("stream")?.unwrap_or(false);
        let mut sampling = Sampling::read(&mut fields, model)?;
        sampling.n = 1;
        sampling.max_tokens = max_tokens(&mut fields, "max_output_tokens")?;
        let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
        sampling.choose.logprobs = match includes_logprobs(&mut fields)? || top.is_some_and(|top| top > 0) {
            true => Some(top.unwrap_or(0) as usize),
            false => None,
        };
        sampling.form = text(&mut fields)?.or(sampling.form);
        let conversation = read(&mut fields, model.template()?)?;
        let prompt = model.render(&conversation)?;
        let held = Held::chat(sampling.form.take(), &conversation, &prompt, model)?;
        let constraints = sampling.constrain(held, 1, model)?;
        let writer = Writer::new(model.syntax()?, &prompt.text, &conversation.tools, streams);
        Ok(Asked { prompt, sampling, constraints, streams, writer, repeated })
    }
}

/// Whether `include` asks for log probabilities. What else it may name is not here, or is told anyway.
///
/// Errors: what is no array of strings.
fn includes_logprobs(fields: &mut Fields) -> Result<bool, ApiError> {
    let mut includes = false;
    for (at, item) in fields.array("include")?.unwrap_or_default().iter().enumerate() {
        match item.as_str() {
            Some("message.output_text.logprobs") => includes = true,
            Some("reasoning.encrypted_content") => {}
            Some(_) => {
                let why = "it tells message.output_text.logprobs";
                return Err(ApiError::unsupported(format!("include[{at}]"), why));
            }
            None => return Err(wrong_type(format!("include[{at}]"), item, "a string")),
        }
    }
    Ok(includes)
}

/// `text`: the form of the answer.
///
/// Errors: what is no form.
fn text(fields: &mut Fields) -> Result<Option<Form>, ApiError> {
    let Some(text) = fields.object("text")? else { return Ok(None) };
    match text.get("verbosity") {
        None | Some(Value::Null) => {}
        Some(word) if word == "medium" => {}
        Some(_) => return Err(ApiError::unsupported("text.verbosity", "the model decides it")),
    }
    text.get("format").map_or(Ok(None), |format| Form::of_text(format, "text.format"))
}

/// Answers a request.
///
/// Errors: what is wrong with it.
pub async fn respond(
    server: &Arc<Server>,
    body: Bytes,
    record: &mut Option<Record>,
) -> Result<Response<Body>, ApiError> {
    let (model, asked) = server.asked(body, Asked::read).await?;
    let Asked { prompt, sampling, constraints, streams, writer, repeated } = asked;
    let receiver =
        model.submit(std::slice::from_ref(&prompt), &sampling, model.spells_control(), constraints)?;
    let tokenizer = sampling.choose.logprobs.map(|_| Arc::clone(&model.tokenizer));
    let shape = Answer::new(server.config.name.clone(), repeated, streams, tokenizer, writer);
    answer::give(shape, receiver, 1, streams, record).await
}

/// The conversation as a chat template reads it.
///
/// Errors: what is no item, or no tool.
fn read(fields: &mut Fields, template: &ChatTemplate) -> Result<Conversation, ApiError> {
    let mut messages = Messages::default();
    if let Some(text) = fields.string("instructions")? {
        messages.add(json!({"role": "system", "content": text}));
    }
    match fields.take("input") {
        None => return Err(missing("input")),
        Some(Value::String(text)) => messages.add(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) => {
            for (at, item) in items.into_iter().enumerate() {
                messages.item(item, &format!("input[{at}]"))?;
            }
        }
        Some(other) => return Err(wrong_type("input", &other, "a string or an array")),
    }
    let mut messages = messages.finish();
    if messages.is_empty() {
        return Err(ApiError::field("input", "invalid_value", "found none, wanted one item at least"));
    }
    for (name, message) in &mut messages {
        prepare(message, name, template)?;
    }
    let messages = messages.into_iter().map(|(_, message)| message).collect();
    let mut extra = template_variables(fields)?;
    let reasoning = fields.object("reasoning")?.unwrap_or_default();
    match reasoning.get("effort") {
        None | Some(Value::Null) => {}
        Some(effort @ Value::String(_)) => {
            extra.entry("reasoning_effort").or_insert_with(|| effort.clone());
        }
        Some(other) => return Err(wrong_type("reasoning.effort", other, "a string")),
    }
    let tools = Tools::of_responses(fields)?;
    Conversation::new(messages, tools, extra, false)
}

/// Messages, each with the name of the item that it began with.
#[derive(Default)]
struct Messages {
    read: Vec<(String, Value)>,
    /// An assistant's message that more of its items may belong to.
    open: Option<(String, Map<String, Value>)>,
}

impl Messages {
    fn add(&mut self, message: Value) {
        self.close();
        self.read.push(("input".to_owned(), message));
    }

    fn close(&mut self) {
        if let Some((name, mut message)) = self.open.take() {
            message.entry("content").or_insert(Value::Null);
            self.read.push((name, Value::Object(message)));
        }
    }

    fn finish(mut self) -> Vec<(String, Value)> {
        self.close();
        self.read
    }

    /// The assistant's message that an item belongs to: the open one, unless it has something of the kind already, or more behind it.
    fn assistant(&mut self, name: &str, behind: &[&str]) -> &mut Map<String, Value> {
        if self.open.as_ref().is_some_and(|(_, open)| behind.iter().any(|field| open.contains_key(*field))) {
            self.close();
        }
        let begin = || (name.to_owned(), Map::from_iter([("role".to_owned(), Value::from("assistant"))]));
        &mut self.open.get_or_insert_with(begin).1
    }

    /// Adds an item.
    ///
    /// Errors: it is none.
    fn item(&mut self, item: Value, name: &str) -> Result<(), ApiError> {
        let Value::Object(mut item) = item else { return Err(wrong_type(name, &item, "an object")) };
        let kind = item.get("type").and_then(Value::as_str).unwrap_or("message").to_owned();
        let text = |field: &str| match item.get(field) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(wrong_type(format!("{name}.{field}"), other, "a string")),
            None => Err(missing(&format!("{name}.{field}"))),
        };
        match kind.as_str() {
            "message" if item.get("role").is_some_and(|role| role == "assistant") => {
                let content = item.remove("content").unwrap_or_default();
                self.assistant(name, &["content", "tool_calls"]).insert("content".to_owned(), content);
            }
            "message" => {
                self.close();
                item.remove("type");
                self.read.push((name.to_owned(), Value::Object(item)));
            }
            "function_call" => {
                let function = json!({"name": text("name")?, "arguments": text("arguments")?});
                let call = json!({"id": text("call_id")?, "type": "function", "function": function});
                let calls = self.assistant(name, &[]).entry("tool_calls").or_insert_with(|| json!([]));
                if let Value::Array(calls) = calls {
                    calls.push(call);
                }
            }
            "function_call_output" => {
                let call_id = text("call_id")?;
                let output = item.remove("output").ok_or_else(|| missing(&format!("{name}.output")))?;
                self.close();
                let message = json!({"role": "tool", "tool_call_id": call_id, "content": output});
                self.read.push((name.to_owned(), message));
            }
            "reasoning" => {
                let parts = item.get("content").and_then(Value::as_array);
                let parts = parts.or(item.get("summary").and_then(Value::as_array));
                let texts = parts.into_iter().flatten().filter_map(|part| part.get("text")?.as_str());
                let text = texts.collect::<Vec<_>>().join("\n");
                if !text.is_empty() {
                    let message = self.assistant(name, &["content", "tool_calls", "reasoning_content"]);
                    message.insert("reasoning_content".to_owned(), Value::String(text));
                }
            }
            other => {
                let other: String = other.chars().take(40).collect();
                let why =
                    format!("an item of type {other:?}; it reads messages, function calls and reasoning");
                return Err(ApiError::unsupported(format!("{name}.type"), &why));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &Value) -> Result<Value, ApiError> {
        let template = ChatTemplate::from_source("{{ messages }}").unwrap();
        read(&mut Fields::parse(body.to_string().as_bytes())?, &template).map(|read| read.input.messages)
    }

    #[test]
    fn items_become_messages_that_templates_read() {
        let read = of(&json!({
            "instructions": "S",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "T"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
                {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
                {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "r"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "q"}]},
                {"role": "assistant", "content": "d"},
                {"role": "assistant", "content": "e"},
            ],
        }));
        let call = |id: &str, name: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}});
        assert_eq!(
            read.unwrap(),
            json!([
                {"role": "system", "content": "S"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "reasoning_content": "T", "content": "b", "tool_calls": [call("c1", "f"), call("c2", "g")]},
                {"role": "tool", "tool_call_id": "c1", "content": "r"},
                {"role": "tool", "tool_call_id": "c2", "content": "q"},
                {"role": "assistant", "content": "d"},
                {"role": "assistant", "content": "e"},
            ])
        );
        assert_eq!(of(&json!({"input": "Hi"})).unwrap(), json!([{"role": "user", "content": "Hi"}]));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (input, param) in [
            (json!(null), "input"),
            (json!([]), "input"),
            (json!(3), "input"),
            (json!([3]), "input[0]"),
            (json!([{"role": "king", "content": "a"}]), "input[0].role"),
            (json!([{"role": "user"}]), "input[0].content"),
            (json!([{"type": "item_reference", "id": "x"}]), "input[0].type"),
            (json!([{"type": "function_call", "name": "f", "arguments": "{}"}]), "input[0].call_id"),
            (json!([{"type": "function_call_output", "call_id": "c"}]), "input[0].output"),
            (json!([{"role": "user", "content": [{"type": "input_image"}]}]), "input[0].content[0]"),
        ] {
            assert_eq!(of(&json!({"input": input})).unwrap_err().param.as_deref(), Some(param), "{input}");
        }
    }
}
