//! From tokens to text, on the engine's thread: pieces as they become certain, and the end where a stop text comes.

use moe_run_runtime::engine::{Chosen, EndReason, Ended, Flow, Listener};
use moe_run_text::{
    stop::StopTexts,
    tokenizer::{StreamDecoder, Tokenizer},
};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedSender;

/// What comes of one choice of a request.
#[derive(Debug)]
pub enum Event {
    /// More text.
    Piece(Piece),
    /// Nothing more.
    End(Finished),
}

/// A piece of text, and the tokens that are complete with it.
#[derive(Debug, Default)]
pub struct Piece {
    /// The text; it may be empty.
    pub text: String,
    /// The tokens.
    pub tokens: Vec<Chosen>,
}

/// The end of a choice.
#[derive(Debug)]
pub struct Finished {
    /// Why, and what it took.
    pub ended: Ended,
    /// The stop text that ended it.
    pub stop_text: Option<String>,
}

impl Finished {
    /// Whether the text is complete, and not cut off by a limit.
    pub fn is_complete(&self) -> bool {
        match self.ended.reason {
            EndReason::EndToken | EndReason::Stopped | EndReason::Complete => true,
            EndReason::MaxTokens | EndReason::ContextFull | EndReason::NotHeld(_) | EndReason::Failed(_) => {
                self.stop_text.is_some()
            }
        }
    }

    /// For logs.
    pub fn word(&self) -> &'static str {
        match self.ended.reason {
            EndReason::EndToken => "end_token",
            _ if self.stop_text.is_some() => "stop_text",
            EndReason::Stopped => "stop_text",
            EndReason::Complete => "complete",
            EndReason::MaxTokens => "max_tokens",
            EndReason::ContextFull => "context_full",
            EndReason::NotHeld(_) => "not_held",
            EndReason::Failed(_) => "failed",
        }
    }
}

/// Sends one choice's text to whoever answers the request.
#[derive(Debug)]
pub struct TextListener {
    index: usize,
    tokenizer: Arc<Tokenizer>,
    sender: UnboundedSender<(usize, Event)>,
    decoder: StreamDecoder,
    stops: StopTexts,
    /// Bytes of text until now, and of those that were sent.
    seen: usize,
    sent: usize,
    /// Tokens whose text may still be part of a stop text, with the end of their text.
    held: VecDeque<(usize, Chosen)>,
}

impl TextListener {
    /// A listener of choice `index`, whose text `decoder` makes of its tokens.
    pub fn new(
        index: usize,
        tokenizer: Arc<Tokenizer>,
        sender: UnboundedSender<(usize, Event)>,
        decoder: StreamDecoder,
        stops: StopTexts,
    ) -> TextListener {
        let held = VecDeque::new();
        TextListener { index, tokenizer, sender, decoder, stops, seen: 0, sent: 0, held }
    }

    /// Sends text with the tokens that it completes.
    fn send(&mut self, text: String) {
        self.sent += text.len();
        let whole = self.held.iter().take_while(|(end, _)| *end <= self.sent).count();
        let tokens: Vec<Chosen> = self.held.drain(..whole).map(|(_, chosen)| chosen).collect();
        if !text.is_empty() || !tokens.is_empty() {
            // Whoever does not listen any more is found gone at the next step.
            let _ = self.sender.send((self.index, Event::Piece(Piece { text, tokens })));
        }
    }
}

impl Listener for TextListener {
    fn token(&mut self, chosen: &Chosen) -> Flow {
        // A token without a text of its own, such as a row of padding, gives none.
        let text = self.decoder.push(&self.tokenizer, chosen.token).unwrap_or_default();
        self.seen += text.len();
        self.held.push_back((self.seen, chosen.clone()));
        let passed = self.stops.push(&text);
        self.send(passed.text);
        if passed.stopped { Flow::Stop } else { Flow::GoOn }
    }

    fn end(&mut self, ended: &Ended) {
        if self.stops.found().is_none() {
            let passed = self.stops.push(&self.decoder.finish());
            let rest = if passed.stopped { String::new() } else { self.stops.finish() };
            self.send(passed.text + &rest);
        }
        let stop_text = self.stops.found().map(str::to_owned);
        let finished = Finished { ended: ended.clone(), stop_text };
        let _ = self.sender.send((self.index, Event::End(finished)));
    }

    fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }
}
