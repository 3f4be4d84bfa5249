//! The messages of a chat request, checked, as a chat template reads them.

use moe_run_text::chat::{ChatInput, ChatTemplate};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::{Fields, missing, wrong_type};
use crate::tools::Tools;

/// Who may speak.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// What a request says until now.
#[derive(Debug)]
pub struct Conversation {
    /// What the template renders.
    pub input: ChatInput,
    /// The tools that may be called.
    pub tools: Tools,
    /// The beginning of the answer, which is not told again.
    pub begun: Option<String>,
}

impl Conversation {
    /// A conversation whose last message, where it `goes_on`, is the beginning of the answer.
    ///
    /// Errors: that message is no text of the assistant's.
    pub fn new(
        mut messages: Vec<Value>,
        tools: Tools,
        extra: Map<String, Value>,
        goes_on: bool,
    ) -> Result<Conversation, ApiError> {
        let begun = match goes_on.then(|| messages.pop()).flatten() {
            None => None,
            Some(last) => {
                let is_text = last.get("role").is_some_and(|role| role == "assistant")
                    && last.get("tool_calls").is_none_or(Value::is_null);
                let text = last.get("content").and_then(Value::as_str).filter(|_| is_text);
                let text = text.ok_or_else(|| {
                    ApiError::field(
                        "messages",
                        "invalid_value",
                        "the last one is no text that an answer could go on with",
                    )
                })?;
                Some(text.to_owned())
            }
        };
        let (messages, listed) = (Value::Array(messages), tools.for_template());
        let input = ChatInput { messages, tools: listed, add_generation_prompt: true, extra };
        Ok(Conversation { input, tools, begun })
    }
}

/// What a chat request renders: messages, tools, and further variables of the template.
///
/// Errors: messages that are none; a part that is no text.
pub fn read(fields: &mut Fields, template: &ChatTemplate) -> Result<Conversation, ApiError> {
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
    let tools = Tools::of_chat(fields)?;
    let goes_on = fields.bool("continue_final_message")?.unwrap_or(false);
    let mut conversation = Conversation::new(messages, tools, extra, goes_on)?;
    conversation.input.add_generation_prompt = add_generation_prompt || goes_on;
    Ok(conversation)
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
pub fn prepare(message: &mut Value, name: &str, template: &ChatTemplate) -> Result<(), ApiError> {
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
        read(&mut Fields::parse(json.as_bytes()).unwrap(), &template).map(|read| read.input)
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
    fn an_answer_that_was_begun_goes_on() {
        let template = ChatTemplate::from_source("{{ messages }}").unwrap();
        let fields = |last: &str| {
            let json = format!(
                r#"{{"messages": [{{"role": "user", "content": "a"}}, {last}], "continue_final_message": true}}"#
            );
            read(&mut Fields::parse(json.as_bytes()).unwrap(), &template)
        };
        let read = fields(r#"{"role": "assistant", "content": "b"}"#).unwrap();
        assert_eq!(read.begun.as_deref(), Some("b"));
        assert_eq!(read.input.messages.as_array().unwrap().len(), 1);
        assert!(read.input.add_generation_prompt);
        assert!(fields(r#"{"role": "user", "content": "b"}"#).is_err());
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
