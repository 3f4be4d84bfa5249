//! What a model writes in a chat, as content, reasoning and calls of tools: the parser of one choice, ids for its calls, and how
//! many of its tokens were reasoning.

use moe_run_text::toolcalls::{Calls, Delta, Format, Parser, Syntax};

use crate::listener::Piece;
use crate::openai::new_id;
use crate::tools::Tools;

/// One choice's parser.
#[derive(Debug)]
pub struct Writer {
    parser: Parser,
    format: Format,
    /// What comes behind the first call is not told: the client asked for one at most.
    one_call: bool,
    calls: usize,
    is_closed: bool,
    /// Tokens whose text is reasoning, and those whose text is not told yet.
    reasoning_tokens: usize,
    untold_tokens: usize,
}

impl Writer {
    /// A parser of what follows `prompt`. In a stream calls are told as they come; else when they are whole, so that a broken one
    /// is content.
    pub fn new(syntax: &Syntax, prompt: &str, tools: &Tools, streams: bool) -> Writer {
        let listed = tools.for_template();
        let calls = if streams && listed.is_some() { Calls::Streamed } else { Calls::Whole };
        Writer {
            parser: Parser::new(syntax, prompt, listed.as_ref(), calls),
            format: syntax.format,
            one_call: tools.one_call,
            calls: 0,
            is_closed: false,
            reasoning_tokens: 0,
            untold_tokens: 0,
        }
    }

    /// More text.
    pub fn push(&mut self, piece: &Piece) -> Vec<Delta> {
        self.untold_tokens += piece.tokens.len();
        let deltas = self.parser.push(&piece.text);
        self.keep(deltas)
    }

    /// The end of the text, which the model finished, or which was cut off.
    pub fn finish(&mut self, is_complete: bool) -> Vec<Delta> {
        let deltas = self.parser.finish(is_complete);
        self.keep(deltas)
    }

    fn keep(&mut self, mut deltas: Vec<Delta>) -> Vec<Delta> {
        if let Some(first) = deltas.first() {
            let told = std::mem::take(&mut self.untold_tokens);
            if let Delta::Reasoning(_) = first {
                self.reasoning_tokens += told;
            }
        }
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

    /// Tokens whose text was reasoning.
    pub fn reasoning_tokens(&self) -> usize {
        self.reasoning_tokens
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
