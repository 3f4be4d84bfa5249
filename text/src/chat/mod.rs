//! Messages → the prompt's text, by the Jinja template that the model's file carries.
//!
//! Input: messages, tools and options, as JSON. Output: [`Rendered`], the exact text that Hugging Face's renderer gives,
//! which also knows what of it may be read as a control token: what the template wrote, never what a message says.
//! `environment` is the Jinja environment, `rewrite` puts Python's `operators` and `methods` in the places of Jinja's, within
//! the bounds that `limits` holds for what is a stranger's program; `filters` and `python` are what minijinja lacks;
//! `provenance` tells the template's characters from the messages'.
//! Deliberately absent: templates of our own. A file without one is an error, not a guess.

mod environment;
mod filters;
mod json;
mod limits;
mod methods;
mod operators;
mod provenance;
mod python;
mod rewrite;
mod strings;

use std::{error::Error as _, sync::Arc, time::SystemTime};

use serde_json::{Map, Value};
use thiserror::Error;

use moe_run_graph::{
    gguf::{GgufError, Metadata, keys},
    shown::shown,
};

use environment::TemplateRaised;
use limits::{Beyond, Budget};
use minijinja::ErrorKind;
pub use provenance::Rendered;

/// Why a chat could not be rendered.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The file carries no template.
    #[error(
        "{}: no chat template (key \"tokenizer.chat_template\"); give one with --chat-template FILE, or the prompt as it is \
         with --raw",
        shown(file)
    )]
    Absent {
        /// File concerned.
        file: String,
    },
    /// A metadata key of the wrong type.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// The template is not valid Jinja.
    #[error(
        "chat template, line {line}: {}; give another with --chat-template FILE, or use --raw",
        shown(detail)
    )]
    Syntax {
        /// Line in the template, 0 where unknown.
        line: usize,
        /// What is wrong.
        detail: String,
    },
    /// The template itself refused the messages (`raise_exception`).
    #[error("the chat template refuses these messages: {}", shown(message))]
    Refused {
        /// What it says.
        message: String,
    },
    /// The template failed on these messages.
    #[error(
        "chat template, line {line}: {}; check the messages, or give another template with --chat-template FILE",
        shown(detail)
    )]
    Render {
        /// Line in the template, 0 where unknown.
        line: usize,
        /// What is wrong.
        detail: String,
    },
    /// The template costs more than a template may.
    #[error(
        "chat template, line {line}: {}; no template needs that for these messages: give another with --chat-template FILE, or \
         use --raw",
        shown(detail)
    )]
    Cost {
        /// Line in the template, 0 where unknown.
        line: usize,
        /// Which bound it breaks.
        detail: String,
    },
    /// The messages are not what a template expects.
    #[error("messages: found {found}, wanted {wanted}")]
    Input {
        /// What was given.
        found: String,
        /// What would be right.
        wanted: &'static str,
    },
    /// It cannot be told which of the control tokens come from the template.
    #[error(
        "a message holds characters of control tokens and the chat template acts on them, so it cannot be told what the \
         template wrote; remove them from the message, or render the prompt yourself and use --raw"
    )]
    Entangled,
}

/// What a template renders.
#[derive(Clone, PartialEq, Debug)]
pub struct ChatInput {
    /// An array of objects with at least `role`; mostly `content`, too.
    pub messages: Value,
    /// An array of tool definitions, where there are any.
    pub tools: Option<Value>,
    /// Whether the prompt ends with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Further variables of the template: `enable_thinking`, `documents`, `bos_token` and so on.
    pub extra: Map<String, Value>,
}

impl ChatInput {
    /// A conversation from pairs of role and content, to be answered.
    pub fn conversation<'a>(turns: impl IntoIterator<Item = (&'a str, &'a str)>) -> ChatInput {
        let messages = turns
            .into_iter()
            .map(|(role, content)| serde_json::json!({"role": role, "content": content}))
            .collect();
        ChatInput { messages, tools: None, add_generation_prompt: true, extra: Map::new() }
    }

    /// The input as Hugging Face's renderer hands it to a template: an assistant's reasoning under both names that templates
    /// read, and the arguments of tool calls, which clients send as JSON text, as objects.
    fn prepared(&self) -> ChatInput {
        let mut input = self.clone();
        for message in input.messages.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            const NAMES: [&str; 3] = ["thinking", "reasoning_content", "reasoning"];
            let reasoning =
                NAMES.iter().find_map(|name| message.get(*name).filter(|v| v.is_string()).cloned());
            if let Some(reasoning) = reasoning {
                for name in &NAMES[..2] {
                    if message.get(*name).is_none_or(Value::is_null) {
                        message.insert((*name).to_owned(), reasoning.clone());
                    }
                }
            }
            let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
            for call in calls.into_iter().flatten() {
                let function =
                    if call.get("function").is_some() { call.get_mut("function") } else { Some(call) };
                let Some(arguments) = function.and_then(|f| f.get_mut("arguments")) else { continue };
                // What is no object stays as it is: the template may know what to do with it.
                let object = arguments
                    .as_str()
                    .and_then(|text| serde_json::from_str(text).ok())
                    .filter(Value::is_object);
                if let Some(object) = object {
                    *arguments = object;
                }
            }
        }
        input
    }

    /// Errors: the messages are no array of objects with a role.
    fn check(&self) -> Result<(), ChatError> {
        let input_error = |found: String| ChatError::Input {
            found,
            wanted: "an array of objects, each with a \"role\" that is a string",
        };
        let messages =
            self.messages.as_array().ok_or_else(|| input_error(kind(&self.messages).to_owned()))?;
        for (index, message) in messages.iter().enumerate() {
            match message {
                Value::Object(fields) if fields.get("role").is_some_and(Value::is_string) => {}
                Value::Object(_) => return Err(input_error(format!("message {index} without such a role"))),
                other => return Err(input_error(format!("{} as message {index}", kind(other)))),
            }
        }
        match &self.tools {
            None | Some(Value::Array(_) | Value::Null) => Ok(()),
            Some(other) => Err(ChatError::Input {
                found: format!("{} as tools", kind(other)),
                wanted: "an array of tools",
            }),
        }
    }
}

/// What a JSON value is, for messages: "a string".
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a bool",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A chat template, checked to be valid Jinja.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    /// `bos_token`, `eos_token` and so on: texts that Hugging Face's renderer hands to every template.
    token_variables: Map<String, Value>,
}

impl ChatTemplate {
    /// The template of a file, with the texts of its BOS, EOS and padding tokens as variables.
    ///
    /// Errors: there is none, or it is not valid Jinja.
    pub fn from_metadata(metadata: &Metadata) -> Result<ChatTemplate, ChatError> {
        let Some(source) = metadata.opt_str(keys::CHAT_TEMPLATE)? else {
            return Err(ChatError::Absent { file: metadata.origin().to_owned() });
        };
        ChatTemplate::from_source(source)?.with_token_variables(metadata)
    }

    /// A template from its Jinja source.
    ///
    /// Errors: it is not valid Jinja.
    pub fn from_source(source: &str) -> Result<ChatTemplate, ChatError> {
        let source = environment::replace_generation_tags(source);
        limits::check_syntax(&source, &environment::syntax())
            .map_err(|too_much| ChatError::Syntax { line: too_much.line, detail: too_much.detail })?;
        limits::on_known_stack(|| environment::compile(&source).map(drop))
            .flatten()
            .map_err(|e| ChatError::Syntax { line: e.line().unwrap_or(0), detail: detail(&e) })?;
        Ok(ChatTemplate { source, token_variables: Map::new() })
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The same template, with the variables `bos_token`, `eos_token` and `pad_token` of a file.
    ///
    /// Errors: a key is of the wrong type.
    pub fn with_token_variables(mut self, metadata: &Metadata) -> Result<ChatTemplate, ChatError> {
        let Some(texts) = metadata.opt_string_array(keys::TOKENIZER_TOKENS)? else { return Ok(self) };
        for (variable, key) in [
            ("bos_token", keys::TOKENIZER_BOS),
            ("eos_token", keys::TOKENIZER_EOS),
            ("pad_token", keys::TOKENIZER_PADDING),
        ] {
            // An id that no token has stands for "none"; the tokenizer says so.
            let id = metadata.opt_integer(key)?.and_then(|id| usize::try_from(id).ok());
            if let Some(text) = id.and_then(|id| texts.get(id)) {
                self.token_variables.insert(variable.to_owned(), Value::String(text.clone()));
            }
        }
        Ok(self)
    }

    /// The prompt's text.
    ///
    /// Errors: the template fails on, or refuses, the input.
    pub fn render_text(&self, input: &ChatInput) -> Result<String, ChatError> {
        input.check()?;
        let (input, budget) = (input.prepared(), Budget::new());
        on_template_stack(|| self.render_at(&input, SystemTime::now(), &budget))
    }

    /// The prompt, with what is needed to read control tokens only from what the template wrote. `control_texts` are the
    /// texts of the vocabulary's control tokens.
    ///
    /// Errors: the template fails on, or refuses, the input, costs more than is allowed, or acts on characters of control
    /// tokens inside messages.
    pub fn render<'a>(
        &self,
        input: &ChatInput,
        control_texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<Rendered, ChatError> {
        input.check()?;
        // All renderings of one prompt see the same time and share what they may cost.
        let (now, budget) = (SystemTime::now(), Budget::new());
        let control_texts: Vec<&str> = control_texts.into_iter().collect();
        let input = input.prepared();
        on_template_stack(|| {
            let text = self.render_at(&input, now, &budget)?;
            provenance::separate(text, &input, &control_texts, |marked| self.render_at(marked, now, &budget))
        })
    }

    fn render_at(
        &self,
        input: &ChatInput,
        now: SystemTime,
        budget: &Arc<Budget>,
    ) -> Result<String, ChatError> {
        let mut variables = Map::new();
        variables.insert("messages".to_owned(), input.messages.clone());
        // Hugging Face's renderer defines these even where there are none.
        variables.insert("tools".to_owned(), input.tools.clone().unwrap_or(Value::Null));
        variables.insert("documents".to_owned(), Value::Null);
        variables.insert("add_generation_prompt".to_owned(), Value::Bool(input.add_generation_prompt));
        variables.extend(self.token_variables.clone());
        variables.extend(input.extra.clone());
        let variables = Value::Object(variables);
        let text = environment::render(&self.source, json::to_template(&variables), now, budget)
            .map_err(render_error)?;
        limits::check_output(text.len(), provenance::size(&variables)).map_err(render_error)?;
        Ok(text)
    }
}

/// Runs a rendering where its stack suffices.
fn on_template_stack<T: Send>(work: impl FnOnce() -> Result<T, ChatError> + Send) -> Result<T, ChatError> {
    limits::on_known_stack(work).map_err(render_error).flatten()
}

fn render_error(error: minijinja::Error) -> ChatError {
    let (line, detail) = (error.line().unwrap_or(0), detail(&error));
    match cause::<TemplateRaised>(&error) {
        Some(TemplateRaised(message)) => ChatError::Refused { message: cut(message) },
        None if error.kind() == ErrorKind::OutOfFuel => {
            ChatError::Cost { line, detail: "the template takes too many steps".to_owned() }
        }
        None if cause::<Beyond>(&error).is_some() => ChatError::Cost { line, detail },
        None => ChatError::Render { line, detail },
    }
}

/// The cause of this type, if there is one.
fn cause<T: std::error::Error + 'static>(error: &minijinja::Error) -> Option<&T> {
    let mut cause = error.source();
    while let Some(c) = cause {
        if let Some(found) = c.downcast_ref::<T>() {
            return Some(found);
        }
        cause = c.source();
    }
    None
}

/// What went wrong, without the name and line that minijinja adds.
fn detail(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {}", error.kind(), cut(detail)),
        None => error.kind().to_string(),
    }
}

/// The beginning of what an error says: it may hold texts that the template made.
fn cut(text: &str) -> String {
    const SHOWN: usize = 500;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}
