//! SentencePiece's BPE (`tokenizer.ggml.model` "llama"): pieces of text with scores. Of all neighbours whose texts together are a
//! piece, those with the highest score are merged first, the leftmost of equals; what is no piece in the end is spelled in
//! byte tokens. (Kudo and Richardson 2018; `bpe_model.cc` and `normalizer.cc` of SentencePiece say it exactly.)
//!
//! A vocabulary is a stranger's: every merge makes one symbol of two, so that any scores come to an end, and no two symbols are
//! put together more than once (`Memo`), so that long pieces cost no more than they are long.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap},
};

use moe_run_graph::{
    gguf::{MetaArray, MetaValue, Metadata, keys},
    ids::TokenId,
};

use super::{TokenKind, TokenizerError, kinds::byte_of, model::BLANK};

/// Pieces, their scores and how text is made ready for them.
#[derive(Debug)]
pub struct SentencePiece {
    /// Of each text that text may become.
    pieces: HashMap<Box<str>, u32>,
    /// One a token.
    scores: Vec<f32>,
    /// The token of each byte.
    bytes: Box<[Option<TokenId>; 256]>,
    /// The most bytes of a piece.
    longest: usize,
    space_prefix: bool,
    remove_extra_whitespaces: bool,
}

/// What a symbol is: a piece, or a character that is none. Small numbers, so that pairs of them are quickly looked up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Class(u64);

impl Class {
    const CHARACTER: u64 = 1 << 32;

    fn piece(id: u32) -> Class {
        Class(u64::from(id))
    }

    fn character(character: char) -> Class {
        Class(Class::CHARACTER | u64::from(u32::from(character)))
    }

    /// The piece that it is, if it is one.
    fn id(self) -> Option<u32> {
        u32::try_from(self.0).ok()
    }
}

/// A part of the text.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    /// Its first byte.
    start: u32,
    /// How many bytes; 0 where another has taken it in.
    len: u32,
    /// The symbol before; `NONE` at the beginning.
    previous: u32,
    /// The symbol behind; `NONE` at the end.
    next: u32,
    class: Class,
}

const NONE: u32 = u32::MAX;

/// Two neighbours that are a piece together.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Candidate {
    score: f32,
    left: u32,
    right: u32,
    /// Of both together when they were found.
    len: u32,
    id: u32,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    /// The highest score, then the leftmost, is the greatest.
    fn cmp(&self, other: &Candidate) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Candidate) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What has been found out about pairs of one text.
#[derive(Default)]
struct Memo {
    /// The piece of each pair, `NONE` where they are none.
    merged: HashMap<(Class, Class), u32>,
    /// Of what each unused piece was put together, the first time.
    halves: HashMap<u32, (Class, Class)>,
}

impl Memo {
    /// More pairs are not kept: no text of people has as many.
    const PAIRS: usize = 1 << 20;
}

impl SentencePiece {
    /// From a file's pieces and scores.
    ///
    /// Errors: there are no scores, or not one for each token; a key of the wrong type.
    pub fn from_metadata(
        metadata: &Metadata,
        texts: &[String],
        kinds: &[TokenKind],
    ) -> Result<SentencePiece, TokenizerError> {
        let scores = scores(metadata)?;
        if scores.len() != texts.len() {
            return Err(TokenizerError::ScoreCount { found: scores.len(), wanted: texts.len() });
        }
        let mut pieces = HashMap::with_capacity(texts.len());
        let mut bytes = Box::new([None; 256]);
        let mut longest = 0;
        for ((id, text), kind) in (0u32..).zip(texts).zip(kinds) {
            match kind {
                TokenKind::Normal | TokenKind::Unused if !text.is_empty() => {
                    longest = longest.max(text.len());
                    pieces.entry(text.as_str().into()).or_insert(id);
                }
                TokenKind::Byte => {
                    if let Some(byte) = byte_of(text) {
                        bytes[usize::from(byte)].get_or_insert(TokenId(id));
                    }
                }
                TokenKind::Normal | TokenKind::Unused | TokenKind::Control | TokenKind::UserDefined => {}
            }
        }
        Ok(SentencePiece {
            pieces,
            scores,
            bytes,
            longest,
            space_prefix: metadata.opt_bool(keys::TOKENIZER_ADD_SPACE_PREFIX)?.unwrap_or(true),
            remove_extra_whitespaces: metadata
                .opt_bool(keys::TOKENIZER_REMOVE_EXTRA_WHITESPACES)?
                .unwrap_or(false),
        })
    }

    /// Whether a text gets a space in front.
    pub fn adds_space_prefix(&self) -> bool {
        self.space_prefix
    }

    /// The text as the pieces have it: U+2581 for each space, one more in front if the file wants it.
    fn normalized(&self, text: &str) -> String {
        let mut normalized = String::with_capacity(text.len() + BLANK.len());
        if !self.remove_extra_whitespaces {
            if self.space_prefix {
                normalized.push_str(BLANK);
            }
            normalized.push_str(&text.replace(' ', BLANK));
            return normalized;
        }
        for (index, word) in text.split(' ').filter(|word| !word.is_empty()).enumerate() {
            if index > 0 || self.space_prefix {
                normalized.push_str(BLANK);
            }
            normalized.push_str(word);
        }
        normalized
    }

    /// The ids of a text without special tokens. Tokens whose kind is neither normal nor unused are not what text becomes.
    ///
    /// Errors: a byte that no token stands for; a text of more than 4 GiB.
    pub fn encode(
        &self,
        text: &str,
        kinds: &[TokenKind],
        ids: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        self.encode_pieces(&self.normalized(text), kinds, ids)
    }

    /// The same of a text that has others in front: no space is added or removed.
    ///
    /// Errors: as [`SentencePiece::encode`].
    pub fn encode_inside(
        &self,
        text: &str,
        kinds: &[TokenKind],
        ids: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        self.encode_pieces(&text.replace(' ', BLANK), kinds, ids)
    }

    /// The ids of a text that is normalized.
    fn encode_pieces(
        &self,
        text: &str,
        kinds: &[TokenKind],
        ids: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        if u32::try_from(text.len()).is_err() {
            return Err(TokenizerError::TextSize { bytes: text.len() });
        }
        let pieces = Pieces { model: self, kinds };
        let mut memo = Memo::default();
        let mut symbols = Vec::with_capacity(text.len().min(1 << 20));
        let mut indices = text.char_indices().zip(0u32..).peekable();
        while let Some(((start, character), index)) = indices.next() {
            let len = character.len_utf8();
            symbols.push(Symbol {
                start: start as u32,
                len: len as u32,
                previous: index.checked_sub(1).unwrap_or(NONE),
                next: indices.peek().map_or(NONE, |(_, next)| *next),
                class: match pieces.find(&text[start..start + len]) {
                    Some(id) => Class::piece(id),
                    None => Class::character(character),
                },
            });
        }
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() as u32 {
            queue.extend(pieces.candidate(text, &symbols, right - 1, right, &mut memo));
        }
        while let Some(Candidate { left, right, len, id, .. }) = queue.pop() {
            let (first, second) = (symbols[left as usize], symbols[right as usize]);
            // One of the two may have become part of another symbol since, or have grown.
            if first.len == 0 || second.len == 0 || first.len + second.len != len {
                continue;
            }
            symbols[right as usize].len = 0;
            symbols[left as usize] = Symbol { len, next: second.next, class: Class::piece(id), ..first };
            if second.next != NONE {
                symbols[second.next as usize].previous = left;
                queue.extend(pieces.candidate(text, &symbols, left, second.next, &mut memo));
            }
            if first.previous != NONE {
                queue.extend(pieces.candidate(text, &symbols, first.previous, left, &mut memo));
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            self.emit(symbol.class, kinds, &memo, ids)?;
        }
        Ok(())
    }

    /// The tokens of a symbol: its piece; of an unused piece, the pieces that it was put together of; a character's bytes.
    fn emit(
        &self,
        class: Class,
        kinds: &[TokenKind],
        memo: &Memo,
        ids: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        // Halves are shorter than the whole, so this ends.
        let mut pending = vec![class];
        while let Some(class) = pending.pop() {
            let Some(id) = class.id() else {
                let mut buffer = [0; 4];
                let character = u32::try_from(class.0 & !Class::CHARACTER).ok().and_then(char::from_u32);
                for &byte in character.unwrap_or_default().encode_utf8(&mut buffer).as_bytes() {
                    let id = self.bytes[usize::from(byte)].ok_or(TokenizerError::MissingByte { byte })?;
                    ids.push(id);
                }
                continue;
            };
            let halves = memo.halves.get(&id).filter(|_| kinds.get(id as usize) == Some(&TokenKind::Unused));
            match halves {
                Some(&(left, right)) => pending.extend([right, left]),
                None => ids.push(TokenId(id)),
            }
        }
        Ok(())
    }
}

/// Pieces as they count by the kinds of tokens.
struct Pieces<'a> {
    model: &'a SentencePiece,
    kinds: &'a [TokenKind],
}

impl Pieces<'_> {
    /// The piece of that text.
    fn find(&self, text: &str) -> Option<u32> {
        let id = *self.model.pieces.get(text)?;
        let kind = self.kinds.get(id as usize);
        matches!(kind, Some(TokenKind::Normal | TokenKind::Unused)).then_some(id)
    }

    /// Two neighbours, if they are a piece together.
    fn candidate(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: u32,
        right: u32,
        memo: &mut Memo,
    ) -> Option<Candidate> {
        let (first, second) = (symbols[left as usize], symbols[right as usize]);
        let len = first.len + second.len;
        if len as usize > self.model.longest {
            return None;
        }
        let pair = (first.class, second.class);
        let id = match memo.merged.get(&pair) {
            Some(&id) => id,
            None => {
                let start = first.start as usize;
                let id = self.find(&text[start..start + len as usize]).unwrap_or(NONE);
                if memo.merged.len() < Memo::PAIRS {
                    memo.merged.insert(pair, id);
                }
                if self.kinds.get(id as usize) == Some(&TokenKind::Unused) {
                    memo.halves.entry(id).or_insert(pair);
                }
                id
            }
        };
        let score = *self.model.scores.get(id as usize)?;
        Some(Candidate { score, left, right, len, id })
    }
}

/// The file's scores; one that is no number is the lowest.
///
/// Errors: the key is absent, or no array of numbers.
fn scores(metadata: &Metadata) -> Result<Vec<f32>, TokenizerError> {
    let number = |score: f32| if score.is_nan() { f32::NEG_INFINITY } else { score + 0.0 };
    match metadata.get(keys::TOKENIZER_SCORES) {
        // Some converters wrote whole numbers.
        Some(MetaValue::Array(MetaArray::I32(scores))) => {
            Ok(scores.iter().map(|&score| score as f32).collect())
        }
        _ => Ok(metadata.f32_array(keys::TOKENIZER_SCORES)?.iter().map(|&score| number(score)).collect()),
    }
}
