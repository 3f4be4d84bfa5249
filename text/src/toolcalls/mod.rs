//! What a model wrote → content, reasoning and calls of tools.
//!
//! Each family of models writes calls in a way of its own, which its chat template shows. [`Syntax::of`] tells the way from the
//! template's text and from what the template renders, never from a model's name; a template of no known way gives plain
//! content. A [`Parser`] takes the text in pieces cut anywhere and gives [`Delta`]s, none of which is ever taken back; their sum
//! is an [`Answer`], the same for the whole text and for any pieces.
//!
//! - Text that no call follows is content, also where it mentions a tag; in the reasoning nothing is a call.
//! - A call that is broken (JSON that is none, a tag that never ends) is content as it stands, in a text that the model finished;
//!   where the text was cut off, it is the open call, and no content.
//! - Calls are reported whether or not a tool has that name, and without tools, too. The tools' schemas only say whether a value
//!   without quotes is a text or JSON.
//!
//! A model's text is a stranger's: time is linear in it, nesting of values is bounded, memory is that of the text.
//! What a model is to write is the other direction: [`Syntax::calls`] gives the rule of calls that must come, [`Syntax::lead`]
//! what stands in front of them.
//! `reader` is the text while it comes, `output` the deltas; `notation` reads values, `schema` types them; `syntax` has the
//! table of formats, and one file each what they write.

mod arg_key;
mod blocks;
mod gemma;
mod grammar;
mod harmony;
mod invoke;
mod json_call;
mod lead;
mod minimax_m3;
mod notation;
mod output;
mod parameter;
mod pythonic;
mod reader;
mod schema;
mod section;
mod syntax;
mod tagged;

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use serde_json::Value;

pub use grammar::{CallsError, CallsRule, ToolChoice};
pub use lead::Ahead;
pub use output::Delta;
pub use syntax::{Format, Syntax};

use output::Output;
use reader::{Reader, Stop};
use schema::{Schema, Tools};

use crate::tokenizer::Utf8Stream;

/// What a parser reads from and writes to.
struct Work {
    reader: Reader,
    output: Output,
    tools: Tools,
    syntax: Syntax,
    /// The text begins inside of reasoning.
    is_inside_reasoning: bool,
    /// The end of the prompt.
    prompt_tail: String,
}

impl Work {
    fn schema(&self, tool: &str) -> Schema<'_> {
        self.tools.arguments(tool)
    }

    /// A call is whole: it is given, and what comes after is another matter.
    fn finish_call(&self) {
        self.output.finish();
        self.commit();
    }

    /// A call of a list is whole. It is given with the list, which may still turn out to be broken; or at once where calls are
    /// streamed.
    fn finish_listed(&self) {
        self.output.finish();
        if self.output.are_streamed() {
            self.commit();
        }
    }

    /// Calls are whole: they are given, and what comes after is another matter.
    fn commit(&self) {
        self.output.commit();
        self.reader.move_hold();
    }

    /// Passes a tag that may follow a call, blanks in front of it included. `false` where it does not.
    async fn trailing(&self, tag: &str) -> bool {
        self.reader.blanks().await;
        match self.reader.ahead(tag).await {
            reader::Ahead::Is => self.reader.skip(tag.len()),
            reader::Ahead::Other => return false,
            reader::Ahead::Cut => drop(self.reader.take_rest()),
        }
        self.reader.move_hold();
        true
    }
}

/// A finished call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// The tool's name, as the model wrote it.
    pub name: String,
    /// One JSON object.
    pub arguments: String,
}

/// An answer: the sum of its deltas.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// What the user reads.
    pub content: String,
    /// What the model thought.
    pub reasoning: String,
    /// The calls that are complete.
    pub calls: Vec<Call>,
    /// The call that has begun and not ended.
    pub open_call: Option<Call>,
}

impl Answer {
    /// Adds the next delta.
    pub fn add(&mut self, delta: &Delta) {
        match delta {
            Delta::Reasoning(text) => self.reasoning.push_str(text),
            Delta::Content(text) => self.content.push_str(text),
            Delta::CallBegin { name, .. } => {
                self.open_call = Some(Call { name: name.clone(), arguments: String::new() });
            }
            Delta::CallArguments { text, .. } => {
                if let Some(call) = &mut self.open_call {
                    call.arguments.push_str(text);
                }
            }
            Delta::CallEnd { .. } => self.calls.extend(self.open_call.take()),
        }
    }
}

/// When a call is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Calls {
    /// When it is whole: one that is broken is content.
    #[default]
    Whole,
    /// As it comes: one that breaks later stays open, and what follows is content. For texts that a constraint holds to the
    /// format, and for clients that want to show arguments while they are written.
    Streamed,
}

/// The parser of one answer.
pub struct Parser {
    reader: Reader,
    output: Output,
    bytes: Utf8Stream,
    /// Suspended where the text has come no further; `None` once it has read everything.
    work: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl fmt::Debug for Parser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parser")
            .field("reader", &self.reader)
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}

impl Parser {
    /// A parser of what the model writes behind `prompt`, which the syntax's template rendered. `tools` are those of the request.
    #[must_use]
    pub fn new(syntax: &Syntax, prompt: &str, tools: Option<&Value>, calls: Calls) -> Parser {
        let reader = Reader::default();
        let output = Output::new(calls == Calls::Streamed);
        let work = Work {
            reader: reader.clone(),
            output: output.clone(),
            tools: Tools::new(tools),
            is_inside_reasoning: syntax.is_inside_reasoning(prompt),
            prompt_tail: syntax::tail(prompt).to_owned(),
            syntax: syntax.clone(),
        };
        let work = async move {
            syntax::read(&work).await;
            work.output.end();
        };
        Parser { reader, output, bytes: Utf8Stream::default(), work: Some(Box::pin(work)) }
    }

    /// Takes the next piece of the text, cut anywhere, and gives what it adds.
    pub fn push(&mut self, piece: impl AsRef<[u8]>) -> Vec<Delta> {
        let text = self.bytes.push(piece.as_ref());
        self.reader.push(&text);
        self.go_on()
    }

    /// The end of the text; whether the model finished by itself, or was cut off by a limit. Gives what was held back.
    pub fn finish(&mut self, is_finished: bool) -> Vec<Delta> {
        let rest = self.bytes.finish();
        self.reader.push(&rest);
        self.reader.end(is_finished);
        self.go_on()
    }

    /// The call that the end of the text cut off; "?" where not even its name was complete.
    #[must_use]
    pub fn cut_call(&self) -> Option<String> {
        self.output.cut()
    }

    fn go_on(&mut self) -> Vec<Delta> {
        // Nothing wakes the work: it is asked whenever there is more text.
        if let Some(work) = &mut self.work
            && work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
        {
            self.work = None;
        }
        self.output.take()
    }
}

/// The answer that a whole text is.
#[must_use]
pub fn parse(syntax: &Syntax, prompt: &str, tools: Option<&Value>, text: &str, is_finished: bool) -> Answer {
    let mut parser = Parser::new(syntax, prompt, tools, Calls::Whole);
    let mut answer = Answer::default();
    for delta in parser.push(text).iter().chain(&parser.finish(is_finished)) {
        answer.add(delta);
    }
    answer
}

/// What work on a text gives that is whole, so that it never waits.
fn at_once<T>(work: impl Future<Output = T>) -> Option<T> {
    match std::pin::pin!(work).as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}
