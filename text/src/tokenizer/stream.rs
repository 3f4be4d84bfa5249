//! Ids → text while they come: a token may end inside a UTF-8 character, and half a character is never given out.

use moe_run_graph::ids::TokenId;

use super::{TokenKind, Tokenizer, TokenizerError};

/// Bytes → text, holding back an incomplete character until the rest of it arrives.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// The beginning of a character: at most three bytes.
    incomplete: Vec<u8>,
}

impl Utf8Stream {
    /// Takes bytes and gives the text that is complete by now. Bytes that can never become a character are U+FFFD, in the
    /// same places as in `String::from_utf8_lossy` of all the bytes at once.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.incomplete.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.incomplete.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, tail) = rest.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(valid));
            let Some(invalid_bytes) = error.error_len() else {
                rest = tail;
                break;
            };
            text.push('\u{FFFD}');
            rest = &tail[invalid_bytes..];
        }
        self.incomplete = rest.to_vec();
        text
    }

    /// Ends the stream: what is left of an incomplete character is U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.incomplete)).into_owned()
    }
}

/// Ids → text as it becomes complete. Control tokens are no text and give none, unless they are wanted. Where the tokenizer
/// puts a space in front of texts, as SentencePiece does at the beginning and behind control and user-defined tokens, that
/// space is none of the text.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    utf8: Utf8Stream,
    spells_control_tokens: bool,
    /// The tokenizer would have put a space in front of what comes next.
    behind_special: bool,
}

impl Default for StreamDecoder {
    fn default() -> StreamDecoder {
        StreamDecoder { utf8: Utf8Stream::default(), spells_control_tokens: false, behind_special: true }
    }
}

impl StreamDecoder {
    /// A decoder at the beginning of a text.
    pub fn new() -> StreamDecoder {
        StreamDecoder::default()
    }

    /// The same, giving control tokens as their own text: many models write calls of tools with them.
    #[must_use]
    pub fn with_control_tokens(self) -> StreamDecoder {
        StreamDecoder { spells_control_tokens: true, ..self }
    }

    /// A decoder for what goes on behind a prompt: text behind text keeps its space.
    pub fn behind(tokenizer: &Tokenizer, prompt: &[TokenId]) -> StreamDecoder {
        let kind = prompt.last().and_then(|&id| tokenizer.kind(id));
        let behind_special = matches!(kind, None | Some(TokenKind::Control | TokenKind::UserDefined));
        StreamDecoder { behind_special, ..StreamDecoder::default() }
    }

    /// Takes a token and gives the text that is complete by now (often the token's; empty inside a character).
    ///
    /// Errors: the id is outside of the vocabulary.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: TokenId) -> Result<String, TokenizerError> {
        let unknown = || TokenizerError::UnknownToken { id: id.0, vocab_size: tokenizer.vocab_size() };
        let kind = tokenizer.kind(id).ok_or_else(unknown)?;
        let special = matches!(kind, TokenKind::Control | TokenKind::UserDefined);
        let behind_special = std::mem::replace(&mut self.behind_special, special);
        if kind == TokenKind::Control && !self.spells_control_tokens {
            return Ok(String::new());
        }
        let piece = tokenizer.piece(id).ok_or_else(unknown)?;
        let has_prefix = behind_special && !special && tokenizer.adds_space_prefix();
        Ok(self.utf8.push(piece.strip_prefix(b" ").filter(|_| has_prefix).unwrap_or(&piece)))
    }

    /// Ends the text: what is left of an incomplete character is U+FFFD.
    pub fn finish(&mut self) -> String {
        self.utf8.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_half_a_character() {
        let text = "aé日🙂z";
        let mut stream = Utf8Stream::default();
        let mut out = String::new();
        for byte in text.bytes() {
            let part = stream.push(&[byte]);
            assert!(!part.contains('\u{FFFD}'));
            out.push_str(&part);
        }
        assert_eq!((out.as_str(), stream.finish().as_str()), (text, ""));
    }

    #[test]
    fn a_character_cut_off_at_the_end_is_marked() {
        let mut stream = Utf8Stream::default();
        assert_eq!(stream.push(b"a\xF0\x9F\x99"), "a");
        assert_eq!(stream.finish(), "\u{FFFD}");
    }

    #[test]
    fn any_bytes_cut_anywhere_equal_the_lossy_text() {
        // A small linear congruential generator over bytes that often form, break or cut UTF-8 sequences.
        const BYTES: [u8; 16] =
            [0x61, 0x20, 0xC3, 0xA9, 0xE6, 0x97, 0xA5, 0xF0, 0x9F, 0x99, 0x82, 0x80, 0xFF, 0xED, 0xA0, 0xF4];
        let mut state = 1u64;
        let mut next = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..next(12)).map(|_| BYTES[next(16)]).collect();
            let mut stream = Utf8Stream::default();
            let mut text = String::new();
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (part, tail) = rest.split_at(1 + next(rest.len()));
                text.push_str(&stream.push(part));
                rest = tail;
            }
            text.push_str(&stream.finish());
            assert_eq!(text, String::from_utf8_lossy(&bytes), "{bytes:x?}");
        }
    }
}
