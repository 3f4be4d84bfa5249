//! What a parser gives: deltas, none of which is ever taken back.
//!
//! Calls are kept until they are whole, as a call that turns out to be broken is text; or, where the caller wants arguments as
//! they come, given at once. Blanks at the edges of content and reasoning are kept until it is known that they are none.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A piece of an answer. The pieces of one kind, one behind the other, are the whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Delta {
    /// More of the reasoning.
    Reasoning(String),
    /// More of the content.
    Content(String),
    /// A call begins. Calls are numbered from 0 in their order.
    CallBegin {
        /// The call's number.
        index: usize,
        /// The tool's name, as the model wrote it.
        name: String,
    },
    /// More of a call's arguments.
    CallArguments {
        /// The call's number.
        index: usize,
        /// A piece of JSON text.
        text: String,
    },
    /// A call is complete: its arguments are one JSON object.
    CallEnd {
        /// The call's number.
        index: usize,
    },
}

/// One kind of text: its blanks, and whether any of it was given.
#[derive(Debug, Default)]
struct Edges {
    /// Blanks that are given when text follows.
    blanks: String,
    /// Text was given.
    is_begun: bool,
    /// There was a tag.
    is_behind_tag: bool,
    /// Nothing but blanks came since the last tag, and they are none of the text's: blanks on one side of a tag are enough.
    drops_blanks: bool,
}

impl Edges {
    /// What can be given of more text.
    fn text(&mut self, more: &str) -> Option<String> {
        let more = if self.drops_blanks { more.trim_start() } else { more };
        let text = more.trim_end();
        if text.is_empty() {
            self.blanks.push_str(more);
            return None;
        }
        let given = std::mem::take(&mut self.blanks) + text;
        self.blanks.push_str(&more[text.len()..]);
        self.is_begun = true;
        self.drops_blanks = false;
        Some(given)
    }

    /// A tag stands here: blanks that no text precedes belong to it.
    fn tag(&mut self) {
        self.is_behind_tag = true;
        self.drops_blanks = !self.is_begun || !self.blanks.is_empty();
        if !self.is_begun {
            self.blanks.clear();
        }
    }
}

#[derive(Debug, Default)]
struct Deltas {
    /// What the caller has not taken yet.
    ready: VecDeque<Delta>,
    /// Of calls that are not whole yet.
    pending: Vec<Delta>,
    /// Calls are given as they come.
    are_streamed: bool,
    content: Edges,
    reasoning: Edges,
    /// The number of the next call.
    next: usize,
    /// The call that has begun and not ended.
    open: Option<(usize, String)>,
    /// The name of a call that is about to begin.
    named: Option<String>,
    /// The call that the end of the text cut off.
    cut: Option<String>,
}

impl Deltas {
    fn call(&mut self, delta: Delta) {
        if self.are_streamed {
            push(&mut self.ready, delta);
        } else {
            self.pending.push(delta);
        }
    }
}

/// Appends a delta, joined with the last where that is of the same kind.
fn push(deltas: &mut VecDeque<Delta>, delta: Delta) {
    match (deltas.back_mut(), &delta) {
        (Some(Delta::Reasoning(last)), Delta::Reasoning(more)) => last.push_str(more),
        (Some(Delta::Content(last)), Delta::Content(more)) => last.push_str(more),
        (
            Some(Delta::CallArguments { index: a, text: last }),
            Delta::CallArguments { index: b, text: more },
        ) if a == b => {
            last.push_str(more);
        }
        _ => deltas.push_back(delta),
    }
}

/// Where a parser puts what it found. Clones share it with the [`super::Parser`].
#[derive(Clone, Debug, Default)]
pub(super) struct Output(Arc<Mutex<Deltas>>);

impl Output {
    pub fn new(are_streamed: bool) -> Output {
        Output(Arc::new(Mutex::new(Deltas { are_streamed, ..Deltas::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, Deltas> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether calls are given as they come.
    pub fn are_streamed(&self) -> bool {
        self.lock().are_streamed
    }

    /// What is there by now.
    pub fn take(&self) -> Vec<Delta> {
        self.lock().ready.drain(..).collect()
    }

    /// The call that the end of the text cut off; "?" where not even its name is there.
    pub fn cut(&self) -> Option<String> {
        self.lock().cut.clone()
    }

    pub fn content(&self, more: &str) {
        let mut deltas = self.lock();
        if let Some(text) = deltas.content.text(more) {
            push(&mut deltas.ready, Delta::Content(text));
        }
    }

    pub fn reasoning(&self, more: &str) {
        let mut deltas = self.lock();
        if let Some(text) = deltas.reasoning.text(more) {
            push(&mut deltas.ready, Delta::Reasoning(text));
        }
    }

    /// A tag of reasoning or of content stands here, or a call.
    pub fn tag(&self) {
        let mut deltas = self.lock();
        deltas.content.tag();
        deltas.reasoning.tag();
        deltas.reasoning.blanks.clear();
    }

    /// The text ended: blanks at the end of a text without tags are the text's.
    pub fn end(&self) {
        let mut deltas = self.lock();
        if !deltas.content.is_behind_tag {
            let blanks = std::mem::take(&mut deltas.content.blanks);
            if !blanks.is_empty() {
                push(&mut deltas.ready, Delta::Content(blanks));
            }
        }
    }

    /// A call's name is there, and it begins when its arguments do.
    pub fn name(&self, name: &str) {
        self.lock().named = Some(name.to_owned());
    }

    pub fn begin(&self, name: &str) {
        let mut deltas = self.lock();
        deltas.named = None;
        let index = deltas.next;
        deltas.next += 1;
        deltas.open = Some((index, name.to_owned()));
        deltas.call(Delta::CallBegin { index, name: name.to_owned() });
    }

    pub fn arguments(&self, text: &str) {
        let mut deltas = self.lock();
        let Some((index, _)) = deltas.open else { return };
        match deltas.pending.last_mut() {
            // Character by character: joined here already.
            Some(Delta::CallArguments { text: last, .. }) => last.push_str(text),
            _ => deltas.call(Delta::CallArguments { index, text: text.to_owned() }),
        }
    }

    /// The open call is whole.
    pub fn finish(&self) {
        let mut deltas = self.lock();
        if let Some((index, _)) = deltas.open.take() {
            deltas.call(Delta::CallEnd { index });
            if deltas.are_streamed {
                deltas.content.tag();
            }
        }
    }

    /// Gives the calls that are whole.
    pub fn commit(&self) {
        let mut deltas = self.lock();
        let last = deltas.pending.iter().rposition(|delta| matches!(delta, Delta::CallEnd { .. }));
        let whole = last.map_or(0, |last| last + 1);
        if whole > 0 {
            deltas.content.tag();
        }
        let given: Vec<Delta> = deltas.pending.drain(..whole).collect();
        for delta in given {
            push(&mut deltas.ready, delta);
        }
    }

    /// Forgets the calls that were not given. `false` where one was, and so stays.
    pub fn discard(&self) -> bool {
        let mut deltas = self.lock();
        deltas.named = None;
        let began = deltas.pending.iter().filter(|delta| matches!(delta, Delta::CallBegin { .. })).count();
        deltas.pending.clear();
        deltas.next -= began;
        let open = deltas.open.take();
        open.is_none() || !deltas.are_streamed
    }

    /// The end of the text cut a call off.
    pub fn set_cut(&self) {
        let mut deltas = self.lock();
        let open = deltas.open.take().map(|(_, name)| name).or_else(|| deltas.named.take());
        deltas.pending.clear();
        deltas.cut = Some(open.unwrap_or_else(|| "?".to_owned()));
    }
}
