//! Cases of chat templates: a conversation, and what Hugging Face's renderer gives for it.

use moe_run_text::chat::ChatInput;
use serde::Deserialize;
use serde_json::{Map, Value};

/// A case of `chat/cases.json` and its like.
#[derive(Clone, Deserialize)]
pub struct ChatCase {
    /// File of the template.
    pub template: String,
    /// What the case is about.
    pub case: String,
    messages: Value,
    tools: Option<Value>,
    add_generation_prompt: bool,
    extra: Map<String, Value>,
    /// The text; `None` where the template refuses the messages.
    pub expected: Option<String>,
    /// The text has the day in it.
    #[serde(default)]
    pub dated: bool,
    /// What is odd about the case.
    pub note: Option<String>,
}

impl ChatCase {
    /// What the template renders, with further variables.
    #[must_use]
    pub fn input<'a>(&self, variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> ChatInput {
        let mut extra = self.extra.clone();
        extra.extend(variables.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
        ChatInput {
            messages: self.messages.clone(),
            tools: self.tools.clone(),
            add_generation_prompt: self.add_generation_prompt,
            extra,
        }
    }
}
