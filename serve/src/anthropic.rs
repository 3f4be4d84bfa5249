//! `/v1/messages` and `/v1/messages/count_tokens`: Anthropic's API, which coding agents speak.
//!
//! A request becomes the messages that a chat template reads; `anthropic_shape` makes Anthropic's answer of what comes.

use hyper::body::Bytes;
use hyper::{Response, StatusCode};
use moe_run_runtime::generate::Constraint;
use serde_json::{Value, json};
use std::sync::Arc;

use crate::answer;
use crate::anthropic_shape::Message;
use crate::error::ApiError;
use crate::fields::{Fields, Refusal, missing, never, wrong_type};
use crate::form::{Form, Held};
use crate::messages::{Conversation, template_variables};
use crate::model::{Model, Prompt};
use crate::openai::{TOLD_IN_CHAT, new_id};
use crate::record::Record;
use crate::respond::{self, Body};
use crate::sampling::{Sampling, max_tokens, stop_texts};
use crate::server::Server;
use crate::tools::Tools;
use crate::writer::Writer;

/// Fields that would change the answer, and are not heeded.
const REFUSED: &[Refusal] = &[
    ("mcp_servers", "nothing is called from here", |value| value.as_array().is_some_and(Vec::is_empty)),
    ("container", "there are no containers", never),
];

/// What is asked.
struct Asked {
    prompt: Prompt,
    sampling: Sampling,
    constraints: Vec<Box<dyn Constraint>>,
    streams: bool,
    writer: Writer,
}

impl Asked {
    fn read(mut fields: Fields, model: &Model) -> Result<Asked, ApiError> {
        fields.string("model")?;
        fields.refuse(REFUSED)?;
        fields.refuse(TOLD_IN_CHAT)?;
        let streams = fields.bool("stream")?.unwrap_or(false);
        let mut sampling = Sampling::read(&mut fields, model)?;
        sampling.n = 1;
        sampling.max_tokens =
            Some(max_tokens(&mut fields, "max_tokens")?.ok_or_else(|| missing("max_tokens"))?);
        sampling.stops.extend(stop_texts(&mut fields, "stop_sequences")?);
        let format = fields.get("output_config").and_then(|config| config.get("format"));
        let format = format.map_or(Ok(None), |format| Form::of_text(format, "output_config.format"))?;
        let older = fields.take("output_format").map_or(Ok(None), |f| Form::of_text(&f, "output_format"))?;
        sampling.form = format.or(older).or(sampling.form);
        let conversation = read(&mut fields)?;
        let prompt = model.render(&conversation)?;
        let held = Held::chat(sampling.form.take(), &conversation, &prompt, model)?;
        let constraints = sampling.constrain(held, 1, model)?;
        let writer = Writer::new(model.syntax()?, &prompt.text, &conversation.tools, streams);
        Ok(Asked { prompt, sampling, constraints, streams, writer })
    }
}

/// Answers a request.
///
/// Errors: what is wrong with it.
pub async fn message(
    server: &Arc<Server>,
    body: Bytes,
    record: &mut Option<Record>,
) -> Result<Response<Body>, ApiError> {
    let (model, asked) = server.asked(body, Asked::read).await?;
    let Asked { prompt, sampling, constraints, streams, writer } = asked;
    let receiver =
        model.submit(std::slice::from_ref(&prompt), &sampling, model.spells_control(), constraints)?;
    let shape =
        Message::new(new_id("msg_"), server.config.name.clone(), prompt.tokens.len(), streams, writer);
    answer::give(shape, receiver, 1, streams, record).await
}

/// How many tokens a request's prompt has.
///
/// Errors: what is wrong with it.
pub async fn count_tokens(server: &Arc<Server>, body: Bytes) -> Result<Response<Body>, ApiError> {
    let model = server.model()?;
    let count = move || {
        let conversation = read(&mut Fields::parse(&body)?)?;
        Ok(model.render(&conversation)?.tokens.len())
    };
    let tokens = server.on_worker(count).await?;
    Ok(respond::json(StatusCode::OK, &json!({"input_tokens": tokens})))
}

/// Messages, system and tools as a chat template reads them.
///
/// Errors: what is no message, block or tool.
fn read(fields: &mut Fields) -> Result<Conversation, ApiError> {
    let messages = fields.array("messages")?.ok_or_else(|| missing("messages"))?;
    if messages.is_empty() {
        return Err(ApiError::field("messages", "invalid_value", "found none, wanted one at least"));
    }
    let mut read = Vec::new();
    match fields.take("system") {
        None => {}
        Some(Value::String(text)) => read.push(json!({"role": "system", "content": text})),
        Some(Value::Array(blocks)) => {
            read.push(json!({"role": "system", "content": texts(&blocks, "system")?}));
        }
        Some(other) => return Err(wrong_type("system", &other, "a string, or an array of blocks")),
    }
    for (at, message) in messages.iter().enumerate() {
        read_message(message, &format!("messages[{at}]"), &mut read)?;
    }
    let tools = Tools::of_anthropic(fields)?;
    let output = fields.object("output_config")?.unwrap_or_default();
    let mut extra = template_variables(fields)?;
    let thinking = fields.object("thinking")?;
    match thinking.as_ref().and_then(|thinking| thinking.get("type")).and_then(Value::as_str) {
        // The template and the model decide.
        None | Some("adaptive" | "between_tools") => {}
        // What templates that know of it call it.
        Some("enabled") => drop(extra.entry("enable_thinking").or_insert(Value::Bool(true))),
        Some("disabled") => drop(extra.entry("enable_thinking").or_insert(Value::Bool(false))),
        Some(_) => {
            let wanted = "wanted the type \"enabled\", \"disabled\", \"adaptive\" or \"between_tools\"";
            return Err(ApiError::field("thinking", "invalid_value", wanted));
        }
    }
    match output.get("effort") {
        None | Some(Value::Null) => {}
        Some(effort @ Value::String(_)) => {
            extra.entry("reasoning_effort").or_insert_with(|| effort.clone());
        }
        Some(other) => return Err(wrong_type("output_config.effort", other, "a string")),
    }
    // An answer goes on with the assistant's last message.
    let goes_on =
        read.last().is_some_and(|last| last["role"] == "assistant" && last.get("tool_calls").is_none());
    Conversation::new(read, tools, extra, goes_on)
}

/// The text of blocks that hold nothing else.
fn texts(blocks: &[Value], name: &str) -> Result<String, ApiError> {
    let text =
        |(at, block): (usize, &Value)| match (kind_of(block), block.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(text)) => Ok(text.to_owned()),
            (Some("text") | None, _) => Err(wrong_type(
                format!("{name}[{at}]"),
                block,
                "an object with \"type\": \"text\" and \"text\"",
            )),
            (Some(other), _) => Err(other_block(name, at, other)),
        };
    Ok(blocks.iter().enumerate().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

fn kind_of(block: &Value) -> Option<&str> {
    block.get("type").and_then(Value::as_str)
}

fn other_block(name: &str, at: usize, found: &str) -> ApiError {
    let found: String = found.chars().take(40).collect();
    ApiError::unsupported(
        format!("{name}[{at}]"),
        &format!("a block of type {found:?}; it reads text, tools and thinking"),
    )
}

/// A message with its blocks, as one or several that a template reads.
fn read_message(message: &Value, name: &str, read: &mut Vec<Value>) -> Result<(), ApiError> {
    let role = match message.get("role").and_then(Value::as_str) {
        Some(role @ ("user" | "assistant" | "system")) => role,
        Some(_) => {
            return Err(ApiError::field(
                format!("{name}.role"),
                "invalid_value",
                "wanted \"user\", \"assistant\" or \"system\"",
            ));
        }
        None if message.is_object() => return Err(missing(&format!("{name}.role"))),
        None => return Err(wrong_type(name, message, "an object with \"role\" and \"content\"")),
    };
    let name = format!("{name}.content");
    let blocks = match message.get("content") {
        Some(Value::String(text)) => {
            read.push(json!({"role": role, "content": text}));
            return Ok(());
        }
        Some(Value::Array(blocks)) => blocks,
        None | Some(Value::Null) => return Err(missing(&name)),
        Some(other) => return Err(wrong_type(name, other, "a string, or an array of blocks")),
    };
    let (mut texts_read, mut thinking, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    let before = read.len();
    for (at, block) in blocks.iter().enumerate() {
        let text = |field: &str| block.get(field).and_then(Value::as_str).map(str::to_owned);
        let wanted = |field: &str| text(field).ok_or_else(|| missing(&format!("{name}[{at}].{field}")));
        match (kind_of(block), role) {
            (Some("text"), _) => texts_read.push(wanted("text")?),
            (Some("thinking"), "assistant") => thinking.push(wanted("thinking")?),
            // What nobody here can read.
            (Some("redacted_thinking"), "assistant") => {}
            (Some("tool_use"), "assistant") => {
                let arguments = block.get("input").cloned().unwrap_or_else(|| json!({}));
                let function = json!({"name": wanted("name")?, "arguments": arguments});
                calls.push(json!({"id": wanted("id")?, "type": "function", "function": function}));
            }
            (Some("tool_result"), "user") => {
                let content = match block.get("content") {
                    None | Some(Value::Null) => String::new(),
                    Some(Value::String(text)) => text.clone(),
                    Some(Value::Array(blocks)) => texts(blocks, &format!("{name}[{at}].content"))?,
                    Some(other) => {
                        return Err(wrong_type(format!("{name}[{at}].content"), other, "a string or blocks"));
                    }
                };
                read.push(
                    json!({"role": "tool", "tool_call_id": wanted("tool_use_id")?, "content": content}),
                );
            }
            (Some(other), _) => return Err(other_block(&name, at, other)),
            (None, _) => return Err(wrong_type(format!("{name}[{at}]"), block, "an object with \"type\"")),
        }
    }
    let has_results = read.len() > before;
    if has_results && texts_read.is_empty() {
        return Ok(());
    }
    let mut message = json!({"role": role, "content": texts_read.join("\n")});
    if !thinking.is_empty() {
        message["reasoning_content"] = Value::String(thinking.join("\n"));
    }
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
    }
    read.push(message);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &Value) -> Result<Conversation, ApiError> {
        read(&mut Fields::parse(json.to_string().as_bytes())?)
    }

    #[test]
    fn blocks_become_messages_that_templates_read() {
        let Conversation { input, tools, begun } = of(&json!({
            "system": [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "T", "signature": ""}, {"type": "text", "text": "b"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "r"}]},
                    {"type": "text", "text": "c"},
                ]},
            ],
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": true},
            "thinking": {"type": "disabled"},
        }))
        .unwrap();
        assert!(tools.one_call && begun.is_none());
        let call = json!({"id": "t1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}});
        assert_eq!(
            input.messages,
            json!([
                {"role": "system", "content": "S"}, {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b", "reasoning_content": "T", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "t1", "content": "r"}, {"role": "user", "content": "c"},
            ])
        );
        let function = json!({"name": "f", "description": "d", "parameters": {"type": "object"}});
        assert_eq!(input.tools, Some(json!([{"type": "function", "function": function}])));
        assert_eq!(input.extra["enable_thinking"], false);
    }

    #[test]
    fn an_answer_that_was_begun_goes_on() {
        let messages = json!([
            {"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        ]);
        let read = of(&json!({"messages": messages})).unwrap();
        assert_eq!(read.begun.as_deref(), Some("b"));
        assert_eq!(read.input.messages, json!([{"role": "user", "content": "a"}]));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
        for (body, param) in [
            (json!({}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": [3]}), "messages[0]"),
            (json!({"messages": [{"role": "king", "content": "a"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
            (user(json!([{"type": "image", "source": {}}])), "messages[0].content[0]"),
            (user(json!([{"type": "text"}])), "messages[0].content[0].text"),
            (user(json!([3])), "messages[0].content[0]"),
            (json!({"messages": [{"role": "user", "content": "a"}], "system": 3}), "system"),
            (json!({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}), "tools[0].name"),
            (
                json!({"messages": [{"role": "user", "content": "a"}], "tool_choice": {"type": "any"}}),
                "tool_choice",
            ),
            (
                json!({"messages": [{"role": "user", "content": "a"}], "output_config": {"effort": 3}}),
                "output_config.effort",
            ),
            (json!({"messages": [{"role": "user", "content": "a"}], "thinking": {"type": "x"}}), "thinking"),
        ] {
            assert_eq!(of(&body).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
    }
}
