//! What a model writes in a chat, as content, reasoning and calls of tools: the parser of one choice, and ids for its calls.

use moe_run_text::toolcalls::{Calls, Delta, Format, Parser, Syntax};
use serde_json::Value;

use crate::openai::new_id;

/// One choice's parser.
#[derive(Debug)]
pub struct Writer {
    parser: Parser,
    format: Format,
    /// What comes behind the first call is not told: the client asked for one at most.
    one_call: bool,
    calls: usize,
    is_closed: bool,
}

impl Writer {
    /// A parser of what follows `prompt`.
    pub fn new(syntax: &Syntax, prompt: &str, tools: Option<&Value>, one_call: bool) -> Writer {
        let parser = Parser::new(syntax, prompt, tools, Calls::Whole);
        Writer { parser, format: syntax.format, one_call, calls: 0, is_closed: false }
    }

    /// More text.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        let deltas = self.parser.push(text);
        self.keep(deltas)
    }

    /// The end of the text, which the model finished, or which was cut off.
    pub fn finish(&mut self, is_complete: bool) -> Vec<Delta> {
        let deltas = self.parser.finish(is_complete);
        self.keep(deltas)
    }

    fn keep(&mut self, mut deltas: Vec<Delta>) -> Vec<Delta> {
        deltas.retain(|delta| {
            let is_told = !self.is_closed;
            if let (Delta::CallEnd { .. }, true) = (delta, is_told) {
                self.calls += 1;
                self.is_closed = self.one_call;
            }
            is_told
        });
        deltas
    }

    /// Whether a call is complete.
    pub fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// An id for a call, in the form that the model's template wants back.
    pub fn call_id(&self, index: usize, name: &str) -> String {
        match self.format {
            // Its template takes letters and digits, nine of them.
            Format::MistralArgs => new_id("").chars().take(9).collect(),
            Format::KimiK2 => format!("functions.{name}:{index}"),
            _ => new_id("call_"),
        }
    }
}
