//! An answer that may call tools, as it comes: content as it is, reasoning dimmed on a terminal, calls a line each.
//!
//! Input: the model's raw text, control tokens spelled out. Output: standard output, and the [`Answer`] for what comes after.

use std::io::{self, IsTerminal};

use moe_run_text::{
    chat::{ChatInput, ChatTemplate},
    toolcalls::{Answer, Calls, Delta, Format, Parser, Syntax},
};
use serde_json::{Value, json};

use crate::{CliError, output};

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// What is being written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Nothing,
    Reasoning,
    Content,
    Call,
}

/// Takes an answer apart while it is generated.
#[derive(Debug)]
pub struct AnswerView {
    parser: Parser,
    answer: Answer,
    part: Part,
    is_terminal: bool,
    /// Nothing is written: the answer is for a report.
    is_silent: bool,
}

impl AnswerView {
    /// For the answer to messages that a template renders.
    ///
    /// Errors: the template's.
    pub fn new(template: &ChatTemplate, input: &ChatInput, is_silent: bool) -> Result<AnswerView, CliError> {
        let syntax = Syntax::of(template);
        if syntax.format == Format::Plain {
            output::warning(
                "the chat template shows no way of calling tools that is known: calls are shown as the model writes them",
            );
        }
        let prompt = template.render_text(input)?;
        Ok(AnswerView {
            parser: Parser::new(&syntax, &prompt, input.tools.as_ref(), Calls::Whole),
            answer: Answer::default(),
            part: Part::Nothing,
            is_terminal: io::stdout().is_terminal(),
            is_silent,
        })
    }

    /// The next piece of the model's text.
    ///
    /// Errors: standard output's.
    pub fn write(&mut self, piece: &str) -> Result<(), CliError> {
        let deltas = self.parser.push(piece);
        self.show(&deltas)
    }

    /// The end of the text; whether the model ended it. Gives the answer.
    ///
    /// Errors: standard output's.
    pub fn finish(mut self, is_finished: bool) -> Result<Answer, CliError> {
        let deltas = self.parser.finish(is_finished);
        self.show(&deltas)?;
        self.turn_to(Part::Nothing)?;
        if let Some(name) = self.parser.cut_call() {
            output::note(&format!("the answer ends inside of a call ({name})"));
        }
        Ok(self.answer)
    }

    fn show(&mut self, deltas: &[Delta]) -> Result<(), CliError> {
        for delta in deltas {
            self.answer.add(delta);
            match delta {
                Delta::Reasoning(text) => {
                    self.turn_to(Part::Reasoning)?;
                    self.print(text)?;
                }
                Delta::Content(text) => {
                    self.turn_to(Part::Content)?;
                    self.print(text)?;
                }
                Delta::CallEnd { .. } => {
                    self.turn_to(Part::Call)?;
                    if let Some(call) = self.answer.calls.last() {
                        let line = format!("[call] {} {}", call.name, call.arguments);
                        self.print(&line)?;
                    }
                }
                Delta::CallBegin { .. } | Delta::CallArguments { .. } => {}
            }
        }
        Ok(())
    }

    /// Ends what was being written; each part begins on a line of its own.
    fn turn_to(&mut self, part: Part) -> Result<(), CliError> {
        if part == self.part && part != Part::Call {
            return Ok(());
        }
        let dims = self.is_terminal;
        let before = match (self.part, part) {
            (Part::Nothing, _) | (_, Part::Nothing) => "",
            (Part::Call, Part::Call) => "\n",
            _ => "\n\n",
        };
        let end = if dims && self.part == Part::Reasoning { PLAIN } else { "" };
        let begin = if dims && part == Part::Reasoning { DIM } else { "" };
        self.part = part;
        self.print(&format!("{end}{before}{begin}"))
    }

    fn print(&self, text: &str) -> Result<(), CliError> {
        if self.is_silent || text.is_empty() { Ok(()) } else { output::exact(text) }
    }
}

/// An answer as a message that templates read; the ids of its calls count from `first_id`.
#[must_use]
pub fn message(answer: &Answer, first_id: usize) -> Value {
    let mut message = json!({"role": "assistant", "content": answer.content});
    if !answer.reasoning.is_empty() {
        message["reasoning_content"] = answer.reasoning.clone().into();
    }
    let call = |(number, call): (usize, &moe_run_text::toolcalls::Call)| {
        json!({"id": call_id(first_id + number), "type": "function",
               "function": {"name": call.name, "arguments": call.arguments}})
    };
    if !answer.calls.is_empty() {
        message["tool_calls"] = answer.calls.iter().enumerate().map(call).collect();
    }
    message
}

/// The id of a call: nine letters and digits, which is what the strictest templates want.
#[must_use]
pub fn call_id(number: usize) -> String {
    format!("call{number:05}")
}
