//! The messages of a chat request, checked, as a chat template reads them.

use moe_run_text::chat::{ChatInput, ChatTemplate};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::{Fields, missing, wrong_type};

/// Who may speak.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// What a chat request renders: messages, tools, and further variables of the template.
///
/// Errors: messages that are none; a part that is no text.
pub fn read(fields: &mut Fields, template: &ChatTemplate) -> Result<ChatInput, ApiError> {
    let mut messages = fields.array("messages")?.ok_or_else(|| missing("messages"))?;
    if messages.is_empty() {
        return Err(ApiError::field("messages", "invalid_value", "found none, wanted one at least"));
    }
    for (at, message) in messages.iter_mut().enumerate() {
        prepare(message, &format!("messages[{at}]"), template)?;
    }
    let mut extra = template_variables(fields)?;
    if let Some(effort) = fields.string("reasoning_effort")? {
        extra.entry("reasoning_effort").or_insert(Value::String(effort));
    }
    let add_generation_prompt = fields.bool("add_generation_prompt")?.unwrap_or(true);
    let tools = tools(fields)?;
    Ok(ChatInput { messages: Value::Array(messages), tools, add_generation_prompt, extra })
}

/// The tools that the model may call: none where the client chooses none.
///
/// Errors: what is no tool; a choice that the answer would have to be held to.
fn tools(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    let tools = fields.array("tools")?.unwrap_or_default();
    for (at, tool) in tools.iter().enumerate() {
        let name = format!("tools[{at}]");
        match tool.get("type").and_then(Value::as_str) {
            Some("function") => {}
            Some(_) => {
                return Err(ApiError::unsupported(format!("{name}.type"), "only functions are called"));
            }
            None => {
                return Err(wrong_type(name, tool, "an object with \"type\": \"function\" and \"function\""));
            }
        }
        let function = tool.get("function").filter(|function| function.is_object());
        let Some(function) = function else { return Err(missing(&format!("{name}.function"))) };
        match function.get("name") {
            Some(Value::String(text)) if !text.is_empty() => {}
            _ => return Err(missing(&format!("{name}.function.name"))),
        }
        match function.get("parameters") {
            None | Some(Value::Null | Value::Object(_)) => {}
            Some(other) => return Err(wrong_type(format!("{name}.function.parameters"), other, "an object")),
        }
    }
    let are_wanted = match fields.take("tool_choice") {
        None => true,
        Some(Value::String(choice)) if choice == "auto" => true,
        Some(Value::String(choice)) if choice == "none" => false,
        Some(Value::String(_) | Value::Object(_)) => {
            let why = "answers are not held to a call; it takes \"auto\" and \"none\"";
            return Err(ApiError::unsupported("tool_choice", why));
        }
        Some(other) => return Err(wrong_type("tool_choice", &other, "a string or an object")),
    };
    Ok((are_wanted && !tools.is_empty()).then_some(Value::Array(tools)))
}

/// `chat_template_kwargs`.
///
/// Errors: what is no object, or would take the place of a field.
pub fn template_variables(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    const NAME: &str = "chat_template_kwargs";
    let variables = fields.object(NAME)?.unwrap_or_default();
    match ["messages", "tools", "add_generation_prompt"].iter().find(|name| variables.contains_key(**name)) {
        Some(name) => {
            Err(ApiError::field(NAME, "invalid_value", format!("{name} is a field of the request itself")))
        }
        None => Ok(variables),
    }
}

/// Checks a message, and joins the parts of its content.
fn prepare(message: &mut Value, name: &str, template: &ChatTemplate) -> Result<(), ApiError> {
    let Value::Object(fields) = message else {
        return Err(wrong_type(name, message, "an object with \"role\" and \"content\""));
    };
    let role = match fields.get("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role.clone(),
        Some(Value::String(role)) => {
            let role: String = role.chars().take(40).collect();
            let message = format!("found {role:?}, wanted one of {}", ROLES.join(", "));
            return Err(ApiError::field(format!("{name}.role"), "invalid_value", message));
        }
        Some(other) => return Err(wrong_type(format!("{name}.role"), other, "a string")),
        None => return Err(missing(&format!("{name}.role"))),
    };
    // OpenAI's newer name for the system's role, where the template was written before it.
    if role == "developer" && !template.source().contains("developer") {
        fields.insert("role".to_owned(), "system".into());
    }
    let calls = match fields.get("tool_calls") {
        None | Some(Value::Null) => 0,
        Some(Value::Array(calls)) => calls.len(),
        Some(other) => return Err(wrong_type(format!("{name}.tool_calls"), other, "an array")),
    };
    for (at, call) in fields.get("tool_calls").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let function = call.get("function");
        if !function.and_then(|function| function.get("name")).is_some_and(Value::is_string) {
            return Err(missing(&format!("{name}.tool_calls[{at}].function.name")));
        }
        if !function.and_then(|f| f.get("arguments")).is_some_and(|a| a.is_string() || a.is_object()) {
            return Err(missing(&format!("{name}.tool_calls[{at}].function.arguments")));
        }
    }
    let content_name = format!("{name}.content");
    match fields.get("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            let text = join(parts, &content_name)?;
            fields.insert("content".to_owned(), Value::String(text));
        }
        None | Some(Value::Null) if role == "assistant" => {
            if calls == 0 {
                fields.insert("content".to_owned(), Value::String(String::new()));
            }
        }
        None | Some(Value::Null) => return Err(missing(&content_name)),
        Some(other) => return Err(wrong_type(content_name, other, "a string, or an array of parts")),
    }
    Ok(())
}

/// The text of a content in parts.
fn join(parts: &[Value], name: &str) -> Result<String, ApiError> {
    let mut texts = Vec::with_capacity(parts.len());
    for (at, part) in parts.iter().enumerate() {
        let name = format!("{name}[{at}]");
        let found = part.get("type").and_then(Value::as_str);
        match (found, part.get("text").or_else(|| part.get("refusal"))) {
            (Some("text" | "refusal" | "input_text" | "output_text"), Some(Value::String(text))) => {
                texts.push(text.as_str())
            }
            (Some("text"), _) => return Err(missing(&format!("{name}.text"))),
            (Some(other), _) => {
                let other: String = other.chars().take(40).collect();
                return Err(ApiError::unsupported(
                    name,
                    &format!("a part of type {other:?}; it reads text alone"),
                ));
            }
            (None, _) => return Err(wrong_type(name, part, "an object with \"type\" and \"text\"")),
        }
    }
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(json: &str) -> Result<ChatInput, ApiError> {
        let template = ChatTemplate::from_source("{{ messages }}").unwrap();
        read(&mut Fields::parse(json.as_bytes()).unwrap(), &template)
    }

    #[test]
    fn contents_in_parts_are_joined_and_developers_are_the_system() {
        let read = input(
            r#"{"messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": null}], "reasoning_effort": "low"}"#,
        )
        .unwrap();
        assert_eq!(
            read.messages,
            serde_json::json!([{"role": "system", "content": "a\nb"}, {"role": "assistant", "content": ""}])
        );
        assert_eq!(read.extra["reasoning_effort"], "low");
    }

    #[test]
    fn what_is_no_message_is_named() {
        for (json, param) in [
            (r#"{}"#, "messages"),
            (r#"{"messages": []}"#, "messages"),
            (r#"{"messages": "hi"}"#, "messages"),
            (r#"{"messages": [3]}"#, "messages[0]"),
            (r#"{"messages": [{"content": "a"}]}"#, "messages[0].role"),
            (r#"{"messages": [{"role": "king", "content": "a"}]}"#, "messages[0].role"),
            (r#"{"messages": [{"role": "user"}]}"#, "messages[0].content"),
            (r#"{"messages": [{"role": "user", "content": {}}]}"#, "messages[0].content"),
            (r#"{"messages": [{"role": "user", "content": ["a"]}]}"#, "messages[0].content[0]"),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}"#,
                "messages[0].content[0]",
            ),
            (
                r#"{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"messages": 1}}"#,
                "chat_template_kwargs",
            ),
            (r#"{"messages": [{"role": "user", "content": "a"}], "tools": {}}"#, "tools"),
            (r#"{"messages": [{"role": "user", "content": "a"}], "tools": [3]}"#, "tools[0]"),
            (
                r#"{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "magic"}]}"#,
                "tools[0].type",
            ),
            (
                r#"{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", "function": {}}]}"#,
                "tools[0].function.name",
            ),
            (r#"{"messages": [{"role": "user", "content": "a"}], "tool_choice": "required"}"#, "tool_choice"),
            (
                r#"{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a"}}]}]}"#,
                "messages[0].tool_calls[0].function.arguments",
            ),
        ] {
            assert_eq!(input(json).unwrap_err().param.as_deref(), Some(param), "{json}");
        }
    }
}
