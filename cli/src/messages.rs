//! Messages from a JSON file: read, and checked before anything is done with them. Errors name the message by its index and
//! role, and say what it lacks.
//!
//! Input: a file, a chat template. Output: a [`ChatInput`] that the template renders. Absent: the rendering itself.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use moe_run_graph::shown::shown;
use moe_run_text::chat::{ChatError, ChatInput, ChatTemplate, kind};
use serde_json::{Map, Value, json};

use crate::{CliError, inputs};

/// Roles that templates agree on. Others are taken where the template treats them apart.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];
/// How long is looked for the message that a template fails on.
const PROBING: Duration = Duration::from_millis(300);
/// A role that no template knows.
const NO_ROLE: &str = "a-role-that-no-template-knows";

/// Messages and the template's further variables from a JSON file.
///
/// Errors: it cannot be read, is not JSON, or holds no messages; a message without what every template reads.
pub fn read_messages(path: &Path, add_generation_prompt: bool) -> Result<ChatInput, CliError> {
    let text = inputs::text_of_file(path)?;
    let value: Value =
        serde_json::from_str(&text).map_err(|e| wrong(path, &format!("not valid JSON: {e}")))?;
    let input = match value {
        Value::Array(_) => {
            ChatInput { messages: value, tools: None, add_generation_prompt, extra: Map::new() }
        }
        Value::Object(mut extra) => {
            let messages =
                extra.remove("messages").ok_or_else(|| wrong(path, "the object has no \"messages\""))?;
            let tools = extra.remove("tools").filter(|tools| !tools.is_null());
            // The option decides; a key of that name in the file only where the option is silent.
            let add_generation_prompt = match extra.remove("add_generation_prompt") {
                Some(Value::Bool(from_file)) => add_generation_prompt && from_file,
                _ => add_generation_prompt,
            };
            ChatInput { messages, tools, add_generation_prompt, extra }
        }
        _ => return Err(wrong(path, "wanted an array of messages, or an object with \"messages\"")),
    };
    let messages = input.messages.as_array().ok_or_else(|| {
        wrong(path, &format!("\"messages\": found {}, wanted an array of messages", kind(&input.messages)))
    })?;
    if messages.is_empty() {
        return Err(wrong(path, "found no messages, wanted at least one"));
    }
    for (index, message) in messages.iter().enumerate() {
        check_message(message).map_err(|what| wrong(path, &format!("{}: {what}", name(index, message))))?;
    }
    Ok(input)
}

/// The tools in a JSON file: an array, or an object with "tools".
///
/// Errors: it cannot be read, is not JSON, or holds no array of objects.
pub fn read_tools(path: &Path) -> Result<Value, CliError> {
    let text = inputs::read_text(path, "the tools' file")?;
    let value: Value =
        serde_json::from_str(&text).map_err(|e| wrong(path, &format!("not valid JSON: {e}")))?;
    let tools = match value {
        Value::Object(mut fields) => fields
            .remove("tools")
            .ok_or_else(|| wrong(path, "the object has no \"tools\", wanted an array of tools"))?,
        other => other,
    };
    let Value::Array(items) = &tools else {
        return Err(wrong(path, &format!("found {}, wanted an array of tools", kind(&tools))));
    };
    if let Some((index, other)) = items.iter().enumerate().find(|(_, tool)| !tool.is_object()) {
        let what = format!(
            "tool {index}: found {}, wanted an object such as {{\"type\": \"function\", …}}",
            kind(other)
        );
        return Err(wrong(path, &what));
    }
    Ok(tools)
}

/// Errors: a role that the template treats as it treats any word, which is to drop or to repeat it.
pub fn check_roles(path: &Path, template: &ChatTemplate, input: &ChatInput) -> Result<(), CliError> {
    let mut rendered = None;
    for (index, message) in input.messages.as_array().into_iter().flatten().enumerate() {
        let role = message["role"].as_str().unwrap_or_default();
        if ROLES.contains(&role) {
            continue;
        }
        let rendered = rendered.get_or_insert_with(|| template.render_text(input));
        if matches!(rendered, Err(ChatError::Cost { .. })) {
            return Ok(()); // the rendering that counts will say so
        }
        let mut other = input.clone();
        other.messages[index]["role"] = NO_ROLE.into();
        let as_any_word = match (rendered, template.render_text(&other)) {
            (Ok(text), Ok(other)) => *text == other.replace(NO_ROLE, role),
            (Ok(_), Err(_)) => false,
            (Err(_), _) => true,
        };
        if as_any_word {
            let what = format!(
                "found a role that the chat template does not know, wanted one of {}",
                ROLES.join(", ")
            );
            return Err(wrong(path, &format!("{}: {what}", name(index, message))));
        }
    }
    Ok(())
}

/// The template's error about messages, told of the first one that it fails on.
pub fn explain(path: &Path, template: &ChatTemplate, input: &ChatInput, error: &ChatError) -> CliError {
    // Looking for the message takes a rendering for each: only where one can be at fault, and not for long.
    if !matches!(error, ChatError::Refused { .. } | ChatError::Render { .. }) {
        return wrong(path, &error.to_string());
    }
    let until = Instant::now() + PROBING;
    let renders = |messages: &[Value]| {
        Instant::now() < until
            && template
                .render_text(&ChatInput { messages: messages.to_vec().into(), ..input.clone() })
                .is_ok()
    };
    let messages = input.messages.as_array().map(Vec::as_slice).unwrap_or_default();
    // Some templates want a question somewhere: that a beginning is refused means nothing where a longer one is not.
    let rendered = (1..messages.len()).rev().find(|&count| renders(&messages[..count]));
    let question = [json!({"role": "user", "content": "?"})];
    match rendered.or_else(|| renders(&question).then_some(0)) {
        Some(index) => {
            let named = messages.get(index).map(|message| name(index, message)).unwrap_or_default();
            wrong(path, &format!("{named}: {error}"))
        }
        // No message is at fault: the template, the tools, or another variable.
        None => wrong(path, &error.to_string()),
    }
}

/// Errors: no question can follow the messages.
pub fn check_conversation<'a>(
    path: &Path,
    template: &ChatTemplate,
    input: &ChatInput,
    control_texts: impl IntoIterator<Item = &'a str>,
) -> Result<(), CliError> {
    check_roles(path, template, input)?;
    let mut asked = input.clone();
    let messages = input.messages.as_array().map(Vec::as_slice).unwrap_or_default();
    asked.messages = messages.iter().cloned().chain([json!({"role": "user", "content": "?"})]).collect();
    let Err(error) = template.render(&asked, control_texts) else { return Ok(()) };
    match messages.last() {
        Some(last) if template.render_text(input).is_ok() => {
            let last = name(messages.len() - 1, last);
            Err(wrong(path, &format!("no question can follow {last}, the last: {error}")))
        }
        _ => Err(explain(path, template, input, &error)),
    }
}

fn wrong(path: &Path, what: &str) -> CliError {
    CliError::bad_input(format!("{}: {what}", path.display()))
}

/// `message 3 (user)`.
fn name(index: usize, message: &Value) -> String {
    match message.get("role").and_then(Value::as_str) {
        Some(role) => format!("message {index} ({})", shown(role)),
        None => format!("message {index}"),
    }
}

/// What a message lacks that every template reads.
fn check_message(message: &Value) -> Result<(), String> {
    let Value::Object(fields) = message else {
        return Err(format!("found {}, wanted an object with \"role\" and \"content\"", kind(message)));
    };
    match fields.get("role") {
        Some(Value::String(_)) => {}
        None => return Err("found no \"role\", wanted a string such as \"user\"".to_owned()),
        Some(other) => return Err(format!("\"role\": found {}, wanted a string", kind(other))),
    }
    let calls = match fields.get("tool_calls") {
        None | Some(Value::Null) => 0,
        Some(Value::Array(calls)) => calls.len(),
        Some(other) => return Err(format!("\"tool_calls\": found {}, wanted an array", kind(other))),
    };
    match fields.get("content") {
        // Parts are for templates that take them; others fail on them.
        Some(Value::String(_) | Value::Array(_)) => Ok(()),
        None | Some(Value::Null) if calls > 0 => Ok(()),
        None => {
            Err("found no \"content\", wanted a string (an answer that calls tools needs none)".to_owned())
        }
        Some(other) => Err(format!("\"content\": found {}, wanted a string", kind(other))),
    }
}
