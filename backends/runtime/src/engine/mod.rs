//! Many requests on one executable: a queue in front, steps that mix tokens being generated with prompts being read, tokens out.
//!
//! Input: a [`Request`]: ids, how tokens are chosen, and a [`Listener`]. Output: calls of the listener, one a token, then one at
//! the end. What a request is given does not depend on which others are served, where the executable computes each row alone
//! ([`Settings::cuts_freely`]). [`Scheduler`] is the whole of it on one thread, a step at a time; [`Engine`] is a thread that owns
//! one. `choose` is a request's way from logits to a token, `meter` what is counted. Deliberately absent: text, and HTTP.

mod choose;
mod meter;
mod scheduler;
mod thread;

pub use choose::{Choose, Chosen};
pub use meter::{Histogram, Meter};
pub use scheduler::Scheduler;
pub use thread::{Engine, Refused};

use crate::generate::Constraint;
use crate::sequences::{TappedRows, Taps};
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::Stage;
use std::sync::Arc;
use std::time::Duration;

/// How requests share an executable.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Requests that wait beyond those that run; more are refused.
    pub max_queue: usize,
    /// How long a step may take while somebody waits for their next token: prompts are read in smaller parts then.
    pub max_step: Option<Duration>,
    /// Whether a token's values are the same however a prompt was cut into steps, and however many rows a step has: then blocks
    /// of generated tokens are shared, too, and parts of prompts may end anywhere.
    pub cuts_freely: bool,
    /// Whether beginnings that were computed before are used again.
    pub shares_prefixes: bool,
}

/// What a listener says to a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The next one.
    GoOn,
    /// The text is complete.
    Stop,
}

/// Who hears of a request's tokens. It is called between steps, on the engine's thread: it must not wait.
pub trait Listener: Send {
    /// A token was chosen.
    fn token(&mut self, chosen: &Chosen) -> Flow;

    /// Nothing more comes.
    fn end(&mut self, ended: &Ended);

    /// Whether nobody listens any more: the request is then dropped at the next step.
    fn is_gone(&self) -> bool;
}

/// What is asked of the engine.
pub struct Request {
    /// Ids below the vocabulary's size, one at least.
    pub prompt: Vec<TokenId>,
    /// Tokens to generate at most, 1 or more; until the context is full where absent.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub choose: Choose,
    /// What its tokens are held to; it is asked on the engine's thread.
    pub constraint: Option<Box<dyn Constraint>>,
    /// What is told of the passes beside the tokens.
    pub looks: Looks,
    /// Tokens that end the text, and are not part of it, ascending.
    pub end_tokens: Arc<[TokenId]>,
    /// Who hears of it.
    pub listener: Box<dyn Listener>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Request { prompt, max_tokens, choose, constraint: _, looks: _, end_tokens: _, listener: _ } =
            self;
        f.debug_struct("Request")
            .field("prompt", &prompt.len())
            .field("max_tokens", max_tokens)
            .field("choose", choose)
            .finish_non_exhaustive()
    }
}

/// What a request is told of its passes, where [`Sequences::with_taps`] can tell it.
///
/// [`Sequences::with_taps`]: crate::sequences::Sequences::with_taps
#[derive(Debug, Clone, Default)]
pub struct Looks {
    /// Taps of experts' ids: each token is told with those of the pass that chose it.
    pub experts: Arc<Taps>,
    /// Taps of which every row is kept until the end ([`Ended::tapped`]): then no beginning is taken from others.
    pub rows: Arc<Taps>,
}

impl Looks {
    /// All taps.
    fn taps(&self) -> impl Iterator<Item = &(Stage, Option<usize>)> {
        self.experts.iter().chain(self.rows.iter())
    }
}

/// Why a text ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// The model chose a token that ends it.
    EndToken,
    /// The listener said so.
    Stopped,
    /// It is what it is held to, and nothing can follow.
    Complete,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The context has no room for another token.
    ContextFull,
    /// It can no longer be held to what it is held to: what is said.
    NotHeld(String),
    /// A step failed, or its logits were no numbers: what is said.
    Failed(String),
}

/// The end of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// Why.
    pub reason: EndReason,
    /// What it took.
    pub usage: Usage,
    /// What the taps held that were asked for: rows of every token but the one chosen last, which was not read.
    pub tapped: Vec<TappedRows>,
}

/// What a request took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, those that had been computed before.
    pub cached_tokens: usize,
    /// Tokens generated, without the one that ended the text.
    pub output_tokens: usize,
    /// From the submission to the first step.
    pub queued: Duration,
    /// From the submission to the first token.
    pub first_token: Option<Duration>,
    /// From the submission to the end.
    pub total: Duration,
    /// How often it was put back for lack of blocks.
    pub preemptions: usize,
}
