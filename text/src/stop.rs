//! Tokens → text until a stop text: the text ends before the first of them, though it may arrive in pieces.

use crate::tokenizer::{StreamDecoder, Tokenizer, TokenizerError};
use moe_run_graph::ids::TokenId;

/// The text of tokens while they come, until a stop text.
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    decoder: StreamDecoder,
    stops: StopTexts,
}

impl<'a> TextStream<'a> {
    /// The text behind a prompt.
    pub fn behind(tokenizer: &'a Tokenizer, prompt: &[TokenId], stops: StopTexts) -> TextStream<'a> {
        TextStream { tokenizer, decoder: StreamDecoder::behind(tokenizer, prompt), stops }
    }

    /// The same, in which control tokens are text too.
    #[must_use]
    pub fn with_control_tokens(self) -> TextStream<'a> {
        TextStream { decoder: self.decoder.with_control_tokens(), ..self }
    }

    /// Takes a token and gives what is certain by now.
    ///
    /// Errors: the id is outside of the vocabulary.
    pub fn push(&mut self, token: TokenId) -> Result<Passed, TokenizerError> {
        Ok(self.stops.push(&self.decoder.push(self.tokenizer, token)?))
    }

    /// Ends a text that no stop text has ended: what was held back is text after all, unless a stop text is in it.
    pub fn finish(&mut self) -> String {
        let mut rest = self.stops.push(&self.decoder.finish());
        if !rest.stopped {
            rest.text.push_str(&self.stops.finish());
        }
        rest.text
    }
}

/// Looks for stop texts in streamed text, and holds back what may be the beginning of one.
#[derive(Clone, Debug, Default)]
pub struct StopTexts {
    texts: Vec<String>,
    held: String,
    found: Option<usize>,
}

/// What came of a piece of text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Passed {
    /// Text that is certain to come before any stop text.
    pub text: String,
    /// A stop text was found; nothing after `text` counts.
    pub stopped: bool,
}

impl StopTexts {
    /// Stop texts, of which none is empty: an empty one would end every text at its beginning.
    pub fn new(texts: impl IntoIterator<Item = String>) -> StopTexts {
        StopTexts { texts: texts.into_iter().collect(), held: String::new(), found: None }
    }

    /// The stop text that ended the text.
    pub fn found(&self) -> Option<&str> {
        self.found.and_then(|at| self.texts.get(at)).map(String::as_str)
    }

    /// Takes a piece of text.
    pub fn push(&mut self, piece: &str) -> Passed {
        self.held.push_str(piece);
        let found =
            self.texts.iter().enumerate().filter_map(|(at, t)| Some((self.held.find(t.as_str())?, at)));
        if let Some((start, at)) = found.min() {
            self.found = Some(at);
            self.held.truncate(start);
            return Passed { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.texts.iter().map(|t| overlap(&self.held, t)).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - keep);
        Passed { text: std::mem::replace(&mut self.held, kept), stopped: false }
    }

    /// Ends the text: what was held back is text after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that is a beginning, but not the whole, of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    (1..stop.len().min(text.len() + 1))
        .rev()
        .find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds a text in pieces of `size` characters.
    fn run(stops: &[&str], text: &str, size: usize) -> (String, bool) {
        let mut stop = StopTexts::new(stops.iter().map(|&s| s.to_owned()));
        let mut out = String::new();
        let characters: Vec<char> = text.chars().collect();
        for piece in characters.chunks(size) {
            let passed = stop.push(&piece.iter().collect::<String>());
            out.push_str(&passed.text);
            if passed.stopped {
                return (out, true);
            }
        }
        (out + &stop.finish(), false)
    }

    #[test]
    fn the_cut_does_not_depend_on_the_pieces() {
        for (stops, text, wanted, stopped) in [
            (&["END"][..], "one END two", "one ", true),
            (&["END"], "one EN", "one EN", false),
            (&["END"], "EEND", "E", true),
            (&["aab"], "aaab", "a", true),
            (&["\n\n", "x"], "a\nb\n\nc", "a\nb", true),
            (&["é🙂"], "aéé🙂b", "aé", true),
            (&[], "abc", "abc", false),
        ] {
            for size in 1..=text.chars().count() {
                assert_eq!(run(stops, text, size), (wanted.to_owned(), stopped), "{stops:?} {text:?} {size}");
            }
        }
    }

    #[test]
    fn text_that_cannot_be_a_stop_text_is_not_held_back() {
        let mut stop = StopTexts::new(["END".to_owned()]);
        assert_eq!(stop.push("abcE"), Passed { text: "abc".into(), stopped: false });
        assert_eq!(stop.push("x"), Passed { text: "Ex".into(), stopped: false });
    }
}
