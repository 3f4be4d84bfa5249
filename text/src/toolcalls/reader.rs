//! The text that a parser reads, while it is still being written.
//!
//! A format's parser is straight code that awaits the next character or tag; where the text has come no further, it is
//! suspended, and goes on in the same place when more is there. So every character is looked at once however the text is cut,
//! and whole texts and pieces take the same path.
//!
//! [`Reader::hold`] marks a place to which a parser goes back where what it took for a call is none; text is kept from the
//! oldest such place on.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};

/// Characters that a name of a tool or a key may have.
const MAX_NAME: usize = 512;
/// Text that has been read is dropped in pieces of this many bytes or more.
const DROP_BYTES: usize = 4096;

/// Why a parser stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// The text is not what the format writes.
    Not,
    /// The text ended in the middle.
    End,
}

/// What the text ahead is, compared with a tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ahead {
    /// The tag.
    Is,
    /// Something else.
    Other,
    /// The text ended, and all that is left is a beginning of the tag, or nothing.
    Cut,
}

#[derive(Debug, Default)]
struct Text {
    /// What has come, without what was dropped.
    text: String,
    /// Bytes that were dropped in front of `text`.
    dropped: usize,
    /// Where the parser is, in bytes from the beginning of all.
    at: usize,
    /// Places that a parser may go back to, the oldest first.
    holds: Vec<usize>,
    /// Whether the model finished, once nothing more comes.
    ended: Option<bool>,
}

impl Text {
    fn rest(&self) -> &str {
        self.text.get(self.at - self.dropped..).unwrap_or_default()
    }

    fn end(&self) -> usize {
        self.dropped + self.text.len()
    }
}

/// What the text ahead gives at once, or how far it has come where that is not enough.
enum Look<T> {
    Found(T),
    Wait(usize),
}

/// Text as it comes, and the place of the parser in it. Clones read the same text.
#[derive(Clone, Debug, Default)]
pub(super) struct Reader(Arc<Mutex<Text>>);

impl Reader {
    /// A text that is whole.
    pub fn of(text: &str) -> Reader {
        let reader = Reader::default();
        reader.push(text);
        reader.end(true);
        reader
    }

    // A panic of another thread cannot leave the text in between: every change is one assignment or one append.
    fn lock(&self) -> MutexGuard<'_, Text> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More text.
    pub fn push(&self, piece: &str) {
        let mut text = self.lock();
        let unread = text.holds.first().copied().unwrap_or(text.at) - text.dropped;
        // Half of the text at least, so that moving the rest costs no more than what came.
        if unread >= DROP_BYTES.max(text.text.len() / 2) {
            text.text.drain(..unread);
            text.dropped += unread;
        }
        text.text.push_str(piece);
    }

    /// Nothing more comes; whether the model finished by itself.
    pub fn end(&self, finished: bool) {
        self.lock().ended = Some(finished);
    }

    /// Whether the text was cut off.
    pub fn was_cut(&self) -> bool {
        self.lock().ended == Some(false)
    }

    /// Where the parser is, in bytes.
    pub fn position(&self) -> usize {
        self.lock().at
    }

    /// What is left of a text that has ended, and passes it.
    pub fn take_rest(&self) -> String {
        let mut text = self.lock();
        let rest = text.rest().to_owned();
        text.at = text.end();
        rest
    }

    /// Keeps the text from here on.
    pub fn hold(&self) {
        let mut text = self.lock();
        let at = text.at;
        text.holds.push(at);
    }

    /// Keeps the text from here on instead of from the youngest [`Reader::hold`].
    pub fn move_hold(&self) {
        let mut text = self.lock();
        let at = text.at;
        if let Some(hold) = text.holds.last_mut() {
            *hold = at;
        }
    }

    /// Ends the youngest [`Reader::hold`]: goes back to it, or stays. Gives the text in between.
    pub fn release(&self, go_back: bool) -> String {
        let mut text = self.lock();
        let Some(hold) = text.holds.pop() else { return String::new() };
        let passed =
            text.text.get(hold - text.dropped..text.at - text.dropped).unwrap_or_default().to_owned();
        if go_back {
            text.at = hold;
        }
        passed
    }

    async fn wait<T>(&self, mut look: impl FnMut(&mut Text) -> Look<T>) -> T {
        let mut seen = None;
        poll_fn(|_| {
            let mut text = self.lock();
            // Nothing new: the answer is the same.
            if seen == Some(text.end()) && text.ended.is_none() {
                return Poll::Pending;
            }
            match look(&mut text) {
                Look::Found(found) => Poll::Ready(found),
                Look::Wait(end) => {
                    seen = Some(end);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The next character, which stays ahead; `None` at the end.
    pub async fn peek(&self) -> Option<char> {
        self.wait(|text| match (text.rest().chars().next(), text.ended) {
            (None, None) => Look::Wait(text.end()),
            (found, _) => Look::Found(found),
        })
        .await
    }

    /// Passes the next character.
    ///
    /// Errors: the text ends.
    pub async fn next(&self) -> Result<char, Stop> {
        self.wait(|text| match (text.rest().chars().next(), text.ended) {
            (Some(c), _) => {
                text.at += c.len_utf8();
                Look::Found(Ok(c))
            }
            (None, Some(_)) => Look::Found(Err(Stop::End)),
            (None, None) => Look::Wait(text.end()),
        })
        .await
    }

    /// Whether a tag is ahead.
    pub async fn ahead(&self, tag: &str) -> Ahead {
        self.wait(|text| {
            let rest = text.rest();
            if rest.starts_with(tag) {
                Look::Found(Ahead::Is)
            } else if !tag.starts_with(rest) {
                Look::Found(Ahead::Other)
            } else if text.ended.is_some() {
                Look::Found(Ahead::Cut)
            } else {
                Look::Wait(text.end())
            }
        })
        .await
    }

    /// Passes a tag where it is ahead.
    ///
    /// Errors: the text ends inside of what could be the tag.
    pub async fn take(&self, tag: &str) -> Result<bool, Stop> {
        match self.ahead(tag).await {
            Ahead::Is => {
                self.skip(tag.len());
                Ok(true)
            }
            Ahead::Other => Ok(false),
            Ahead::Cut => Err(Stop::End),
        }
    }

    /// Passes a tag.
    ///
    /// Errors: something else is ahead, or the text ends.
    pub async fn expect(&self, tag: &str) -> Result<(), Stop> {
        if self.take(tag).await? { Ok(()) } else { Err(Stop::Not) }
    }

    /// Passes the tag that ends a call whose arguments are complete. Something else is as good, and so is the end of a text that
    /// the model finished.
    ///
    /// Errors: the text was cut off in front of the tag or inside of it.
    pub async fn close(&self, tag: &str) -> Result<(), Stop> {
        match self.ahead(tag).await {
            Ahead::Is => self.skip(tag.len()),
            Ahead::Other => {}
            Ahead::Cut if self.was_cut() => return Err(Stop::End),
            Ahead::Cut => drop(self.take_rest()),
        }
        Ok(())
    }

    /// Passes bytes that are known to be ahead.
    pub fn skip(&self, bytes: usize) {
        let mut text = self.lock();
        text.at = (text.at + bytes).min(text.end());
    }

    /// Passes blanks and line ends.
    pub async fn blanks(&self) {
        self.wait(|text| {
            let rest = text.rest();
            let blank = rest.len() - rest.trim_start().len();
            text.at += blank;
            if text.rest().is_empty() && text.ended.is_none() {
                Look::Wait(text.end())
            } else {
                Look::Found(())
            }
        })
        .await
    }

    /// Passes the text in front of the first of some tags, none of which is a beginning of another, and gives it to `sink` as
    /// it comes. The tag stays ahead; gives its number. `None` where the text ends without one: then the beginning of a tag in
    /// a text that was cut off is passed, too, but not given.
    pub async fn until(&self, tags: &[&str], mut sink: impl FnMut(&str)) -> Option<usize> {
        loop {
            let (passed, found) = self
                .wait(|text| {
                    let (bytes, found, is_partial) = find(text.rest(), tags);
                    match (bytes, found, text.ended) {
                        (0, None, None) => return Look::Wait(text.end()),
                        (_, None, Some(finished)) => {
                            let rest = text.rest();
                            // One character, such as <, is more likely a text's than a tag's.
                            let is_tag = !finished && is_partial && rest[bytes..].chars().nth(1).is_some();
                            let given = if is_tag { rest[..bytes].to_owned() } else { rest.to_owned() };
                            text.at = text.end();
                            return Look::Found((given, Some(None)));
                        }
                        _ => {}
                    }
                    let passed = text.rest()[..bytes].to_owned();
                    text.at += bytes;
                    Look::Found((passed, found.map(Some)))
                })
                .await;
            if !passed.is_empty() {
                sink(&passed);
            }
            if let Some(found) = found {
                return found;
            }
        }
    }

    /// A name of a tool or a key: characters that no markup has, one at least.
    ///
    /// Errors: none is ahead, it is too long, or the text ends with it.
    pub async fn name(&self) -> Result<String, Stop> {
        let mut name = String::new();
        loop {
            match self.peek().await {
                None => return Err(Stop::End),
                Some(c) if is_name(c) && name.len() < MAX_NAME => name.push(self.next().await?),
                Some(_) if name.is_empty() || name.len() >= MAX_NAME => return Err(Stop::Not),
                Some(_) => return Ok(name),
            }
        }
    }

    /// The text in front of `tag`, which is passed, too: one line, not empty.
    ///
    /// Errors: the text ends, or it is no such line.
    pub async fn line_until(&self, tag: &str) -> Result<String, Stop> {
        self.named_line_until(tag, |_| ()).await
    }

    /// As [`Reader::line_until`]; `name` gets the line where the text ends inside of the tag.
    pub async fn named_line_until(&self, tag: &str, name: impl FnOnce(&str)) -> Result<String, Stop> {
        let mut line = String::new();
        loop {
            match self.ahead(tag).await {
                Ahead::Is => break self.skip(tag.len()),
                Ahead::Other => {}
                Ahead::Cut => {
                    if self.peek().await.is_some() {
                        name(line.trim());
                    }
                    return Err(Stop::End);
                }
            }
            match self.next().await? {
                '\n' | '\r' => return Err(Stop::Not),
                _ if line.len() >= MAX_NAME => return Err(Stop::Not),
                c => line.push(c),
            }
        }
        if line.trim().is_empty() { Err(Stop::Not) } else { Ok(line) }
    }
}

/// Whether a name of a tool or a key may have a character.
pub(super) fn is_name(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !"<>[](){}\"'`,;=|\\".contains(c)
}

/// Bytes in front of the first tag, or of what may become one, the tag's number, and whether it is only a beginning.
fn find(rest: &str, tags: &[&str]) -> (usize, Option<usize>, bool) {
    for (at, byte) in rest.bytes().enumerate() {
        if !tags.iter().any(|tag| tag.as_bytes().first() == Some(&byte)) {
            continue;
        }
        let ahead = &rest.as_bytes()[at..];
        if let Some(found) = tags.iter().position(|tag| ahead.starts_with(tag.as_bytes())) {
            return (at, Some(found), false);
        }
        if tags.iter().any(|tag| tag.as_bytes().starts_with(ahead)) {
            return (at, None, true);
        }
    }
    (rest.len(), None, false)
}
