//! The models behind the methods: text without special tokens → ids, and what each token's text stands for.

use std::collections::HashMap;

use tokenizers::{Model as _, models::bpe::BPE};

use moe_run_graph::{
    gguf::{Metadata, keys},
    ids::TokenId,
};

use super::{
    TokenKind, TokenizerError, bytes, kinds::byte_of, method::Method, pretokenize::PreTokenizer,
    sentencepiece::SentencePiece,
};

/// What stands for a blank in vocabularies that are not of the byte-level alphabet: U+2581.
pub const BLANK: &str = "\u{2581}";

/// The first byte of characters beyond U+3FFFF: some published vocabularies (starcoder's) lack it and those behind it. A text
/// with one is refused, not the file.
const FAR_PLANES: u8 = 0xF1;

/// One of the kinds of models.
#[derive(Debug)]
pub enum Model {
    /// BPE over the byte-level alphabet, inside words.
    ByteLevel {
        bpe: Box<BPE>,
        /// Bytes that a text may hold and no token stands for; hardly ever any.
        missing_bytes: Vec<u8>,
        pre_tokenizer: PreTokenizer,
    },
    /// BPE over characters, inside lines.
    Lines {
        bpe: Box<BPE>,
        /// Bytes that no token stands for; hardly ever any.
        missing_bytes: Vec<u8>,
        whole_runs: bool,
    },
    /// Pieces merged by score.
    SentencePiece(SentencePiece),
}

impl Model {
    /// The model of a method, from the file's vocabulary and what the method needs besides.
    ///
    /// Errors: what the method needs is absent or contradicts the vocabulary.
    pub fn new(
        method: Method,
        metadata: &Metadata,
        texts: &[String],
        kinds: &[TokenKind],
    ) -> Result<Model, TokenizerError> {
        match method {
            Method::ByteLevel(pre_tokenizer) => {
                let vocabulary = vocabulary(texts);
                // A byte without a token would vanish from the text. (Bytes that UTF-8 never uses may lack one.)
                let used = (0..=0xF4u8).filter(|b| !matches!(b, 0xC0 | 0xC1));
                let is_missing = |byte: &u8| !vocabulary.contains_key(&bytes::to_alphabet(&[*byte]));
                let missing_bytes: Vec<u8> = used.filter(is_missing).collect();
                if let Some(&byte) = missing_bytes.iter().find(|byte| **byte < FAR_PLANES) {
                    return Err(TokenizerError::MissingByte { byte });
                }
                let merges = merges(metadata)?;
                let builder = BPE::builder().ignore_merges(pre_tokenizer.ignores_merges());
                let bpe = builder.vocab_and_merges(vocabulary.into_iter().collect::<Vocabulary>(), merges);
                let bpe = Box::new(bpe.build().map_err(TokenizerError::Bpe)?);
                Ok(Model::ByteLevel { bpe, missing_bytes, pre_tokenizer })
            }
            Method::Lines { whole_runs } => {
                let vocabulary = vocabulary(texts);
                let is_missing = |byte: &u8| !vocabulary.contains_key(&format!("<0x{byte:02X}>"));
                let missing_bytes = (0..=u8::MAX).filter(is_missing).collect();
                let merges = merges(metadata)?;
                let builder = BPE::builder().byte_fallback(true);
                let bpe = builder.vocab_and_merges(vocabulary.into_iter().collect::<Vocabulary>(), merges);
                let bpe = Box::new(bpe.build().map_err(TokenizerError::Bpe)?);
                Ok(Model::Lines { bpe, missing_bytes, whole_runs })
            }
            Method::SentencePiece => {
                Ok(Model::SentencePiece(SentencePiece::from_metadata(metadata, texts, kinds)?))
            }
        }
    }

    /// The ids of a text without special tokens, which stands at the beginning or behind a special token. `kinds` says which
    /// tokens a text may become.
    ///
    /// Errors: a character that the vocabulary has no bytes for.
    pub fn encode(
        &self,
        text: &str,
        kinds: &[TokenKind],
        ids: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        match self {
            Model::ByteLevel { bpe, missing_bytes, pre_tokenizer } => {
                for word in pre_tokenizer.words(text) {
                    if let Some(byte) = word.bytes().find(|byte| missing_bytes.contains(byte)) {
                        return Err(TokenizerError::MissingByte { byte });
                    }
                    merged(bpe, &bytes::to_alphabet(word.as_bytes()), ids)?;
                }
                Ok(())
            }
            Model::Lines { bpe, missing_bytes, whole_runs } => {
                let text = text.replace(' ', BLANK);
                for piece in lines(&text) {
                    if *whole_runs
                        && piece.starts_with('\n')
                        && let Some(id) = bpe.token_to_id(piece)
                    {
                        ids.push(TokenId(id));
                        continue;
                    }
                    if !missing_bytes.is_empty()
                        && let Some(byte) = lost_byte(bpe, missing_bytes, piece)
                    {
                        return Err(TokenizerError::MissingByte { byte });
                    }
                    merged(bpe, piece, ids)?;
                }
                Ok(())
            }
            Model::SentencePiece(model) => model.encode(text, kinds, ids),
        }
    }

    /// Whether merging gives a text as that token.
    pub fn is_word(&self, text: &str, id: TokenId, kinds: &[TokenKind]) -> bool {
        let mut ids = Vec::new();
        let encoded = match self {
            Model::ByteLevel { .. } | Model::Lines { .. } => self.encode(text, kinds, &mut ids),
            Model::SentencePiece(model) => model.encode_inside(text, kinds, &mut ids),
        };
        encoded.is_ok() && ids == [id]
    }

    /// The bytes that a normal token's text stands for.
    pub fn bytes(&self, text: &str) -> Vec<u8> {
        match self {
            // A normal token may hold characters outside the alphabet in some files; those stand for themselves.
            Model::ByteLevel { .. } => bytes::from_alphabet(text).unwrap_or_else(|| text.as_bytes().to_vec()),
            Model::Lines { .. } | Model::SentencePiece(_) => text.replace(BLANK, " ").into_bytes(),
        }
    }

    /// The byte that a byte token's text stands for.
    pub fn byte(&self, text: &str) -> Option<u8> {
        match self {
            Model::ByteLevel { .. } => None,
            Model::Lines { .. } | Model::SentencePiece(_) => byte_of(text),
        }
    }

    /// Whether a text gets a space in front: at its beginning, and behind a special token.
    pub fn adds_space_prefix(&self) -> bool {
        match self {
            Model::ByteLevel { .. } | Model::Lines { .. } => false,
            Model::SentencePiece(model) => model.adds_space_prefix(),
        }
    }
}

type Vocabulary = tokenizers::models::bpe::Vocab;

/// Each text's id. Where a text occurs twice the lower id is the one that text becomes.
fn vocabulary(texts: &[String]) -> HashMap<String, u32> {
    let mut vocabulary: HashMap<String, u32> = HashMap::with_capacity(texts.len());
    for (id, text) in (0u32..).zip(texts) {
        vocabulary.entry(text.clone()).or_insert(id);
    }
    vocabulary
}

/// The file's merges, best first.
///
/// Errors: there are none, or one is not two tokens with a space between.
fn merges(metadata: &Metadata) -> Result<Vec<(String, String)>, TokenizerError> {
    let merges = metadata.string_array(keys::TOKENIZER_MERGES)?.iter().enumerate();
    merges
        .map(|(index, merge)| {
            let pair = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
            let (left, right) = pair.ok_or_else(|| TokenizerError::Merge { index, found: merge.clone() })?;
            Ok((left.to_owned(), right.to_owned()))
        })
        .collect()
}

/// The ids of one word.
fn merged(bpe: &BPE, word: &str, ids: &mut Vec<TokenId>) -> Result<(), TokenizerError> {
    let tokens = bpe.tokenize(word).map_err(TokenizerError::Bpe)?;
    ids.extend(tokens.iter().map(|token| TokenId(token.id)));
    Ok(())
}

/// A text cut around its runs of line ends.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let is_run = rest.starts_with('\n');
        let end = rest.find(|c| (c == '\n') != is_run).unwrap_or(rest.len());
        let (piece, tail) = rest.split_at(end);
        rest = tail;
        (!piece.is_empty()).then_some(piece)
    })
}

/// A byte of a character that is no token and has none for its bytes: it would vanish.
fn lost_byte(bpe: &BPE, missing_bytes: &[u8], piece: &str) -> Option<u8> {
    let mut buffer = [0; 4];
    piece.chars().find_map(|character| {
        let text: &str = character.encode_utf8(&mut buffer);
        let lost = text.bytes().find(|byte| missing_bytes.contains(byte))?;
        bpe.token_to_id(text).is_none().then_some(lost)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_runs_of_line_ends() {
        for (text, pieces) in [
            ("", vec![]),
            ("a\n\nb", vec!["a", "\n\n", "b"]),
            ("\n", vec!["\n"]),
            ("é\r\n", vec!["é\r", "\n"]),
        ] {
            assert_eq!(lines(text).collect::<Vec<_>>(), pieces);
        }
    }
}
