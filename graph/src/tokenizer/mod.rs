//! Stage 8 and the way in: text ↔ token ids, by the tokenizer that the file itself states.
//!
//! Input: the metadata of a GGUF file. Output: a [`Tokenizer`], built once and then read-only.
//! Byte-level BPE (`tokenizer.ggml.model` "gpt2") is what is known; the merging is the `tokenizers` crate's. How text is cut
//! into words beforehand is `pretokenize`'s, by `tokenizer.ggml.pre`; a name that is not listed there is refused.
//! Deliberately absent: Unicode normalisation (these files are made for readers that do none), and the guessing of a
//! tokenizer from a model's name.
//!
//! Token types: *control* tokens (`<|im_end|>`) steer the model and are read from text only where the caller says that the
//! text may hold them ([`ControlTokens::Parse`]); *user-defined* tokens (`<think>`) are text that happens to be one token,
//! and are always read.

mod bytes;
mod error;
mod pretokenize;
mod special;
mod stream;

use std::collections::HashMap;

use tokenizers::{Model, models::bpe::BPE};

use crate::{
    chat::Rendered,
    gguf::{Metadata, keys},
    ids::TokenId,
};

use pretokenize::PreTokenizer;
use special::{Fragment, SpecialTokens};

pub use error::TokenizerError;
pub use stream::{StreamDecoder, Utf8Stream};

/// Whether control tokens that are spelled out in a text become control tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlTokens {
    /// `<|im_end|>` is the control token.
    Parse,
    /// `<|im_end|>` is ten characters of plain text.
    Literal,
}

/// What a token is, from `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenKind {
    /// A byte sequence of the byte-level alphabet.
    Normal,
    /// Steers the model; is no text.
    Control,
    /// Text that is one token whatever the merges say.
    UserDefined,
    /// A place in the vocabulary that training never used.
    Unused,
}

/// Texts of control tokens of known models that end a generation. Files name one or two ids by key; the rest are found by
/// these texts among the control tokens, so that a model stops at each of its ends.
const END_OF_GENERATION_TEXTS: [&str; 10] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
];

/// Text ↔ ids, as one GGUF file states it.
#[derive(Debug)]
pub struct Tokenizer {
    bpe: BPE,
    pre_tokenizer: PreTokenizer,
    special: SpecialTokens,
    /// The texts of the vocabulary as the file writes them (byte-level alphabet for normal tokens).
    texts: Vec<String>,
    kinds: Vec<TokenKind>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    end_of_generation: Vec<TokenId>,
    add_bos: bool,
}

impl Tokenizer {
    /// The tokenizer that `tokenizer.ggml.*` describes.
    ///
    /// Errors: there is none in the file, it is of a kind that is not known, or its keys contradict each other.
    pub fn from_metadata(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
        let model = metadata.opt_str(keys::TOKENIZER_MODEL)?;
        let model = model.filter(|model| !keys::TOKENIZER_MODEL_NONE.contains(model));
        let Some(model) = model else {
            return Err(TokenizerError::Absent { file: metadata.origin().to_owned() });
        };
        if model != "gpt2" {
            return Err(TokenizerError::Model { found: model.to_owned() });
        }
        let pre_tokenizer = PreTokenizer::by_name(metadata.str(keys::TOKENIZER_PRE)?)?;
        let texts = metadata.string_array(keys::TOKENIZER_TOKENS)?.to_vec();
        if texts.is_empty() || u32::try_from(texts.len()).is_err() {
            return Err(TokenizerError::VocabularySize { found: texts.len() });
        }
        let kinds = token_kinds(metadata, texts.len())?;
        let bpe = byte_pair_encoding(&texts, metadata.string_array(keys::TOKENIZER_MERGES)?)?;

        let id_of_key = |key: &'static str| -> Result<Option<TokenId>, TokenizerError> {
            match metadata.opt_u32(key)? {
                Some(id) if (id as usize) < texts.len() => Ok(Some(TokenId(id))),
                Some(id) => Err(TokenizerError::IdOutOfRange { key, id, vocab_size: texts.len() }),
                None => Ok(None),
            }
        };
        let bos = id_of_key(keys::TOKENIZER_BOS)?;
        let eos = id_of_key(keys::TOKENIZER_EOS)?;
        let mut end_of_generation: Vec<TokenId> =
            [eos, id_of_key(keys::TOKENIZER_EOT)?, id_of_key(keys::TOKENIZER_EOM)?]
                .into_iter()
                .flatten()
                .collect();
        let special = SpecialTokens::new(&texts, &kinds);
        for text in END_OF_GENERATION_TEXTS {
            end_of_generation.extend(special.control(text));
        }
        end_of_generation.sort_unstable();
        end_of_generation.dedup();
        let add_bos = metadata.opt_bool(keys::TOKENIZER_ADD_BOS)?.unwrap_or(false) && bos.is_some();
        Ok(Tokenizer { bpe, pre_tokenizer, special, texts, kinds, bos, eos, end_of_generation, add_bos })
    }

    /// The ids of a text. User-defined tokens are always read, control tokens as `control` says. No BOS is added.
    ///
    /// Errors: the BPE model refuses a word (it does not, once built).
    pub fn encode(&self, text: &str, control: ControlTokens) -> Result<Vec<TokenId>, TokenizerError> {
        let mut ids = Vec::new();
        for fragment in self.special.split(text, control) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => self.encode_plain(text, &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// The ids of a rendered chat: control tokens are read only from what the template itself wrote; the same characters
    /// inside a message stay text.
    ///
    /// Errors: as for [`Tokenizer::encode`].
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Vec<TokenId>, TokenizerError> {
        let mut ids = Vec::new();
        // In the marked text, characters of messages that could take part in a control token are replaced, so a control
        // token that is found there is the template's.
        for fragment in self.special.split_control(rendered.marked()) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(marked) => {
                    ids.extend(self.encode(&rendered.unmark(marked), ControlTokens::Literal)?);
                }
            }
        }
        Ok(ids)
    }

    /// BPE of a text without special tokens.
    fn encode_plain(&self, text: &str, ids: &mut Vec<TokenId>) -> Result<(), TokenizerError> {
        for word in self.pre_tokenizer.words(text) {
            let tokens =
                self.bpe.tokenize(&bytes::to_alphabet(word.as_bytes())).map_err(TokenizerError::Bpe)?;
            ids.extend(tokens.iter().map(|t| TokenId(t.id)));
        }
        Ok(())
    }

    /// The bytes that a token stands for: of a normal token its bytes (not necessarily whole UTF-8 characters), of any
    /// other its text. `None` for an id outside the vocabulary.
    pub fn piece(&self, id: TokenId) -> Option<Vec<u8>> {
        let text = self.texts.get(id.index())?;
        let bytes = match self.kinds[id.index()] {
            // A normal token may hold characters outside the alphabet in some files; those stand for themselves.
            TokenKind::Normal => bytes::from_alphabet(text),
            TokenKind::Control | TokenKind::UserDefined | TokenKind::Unused => None,
        };
        Some(bytes.unwrap_or_else(|| text.as_bytes().to_vec()))
    }

    /// The piece as text, incomplete characters as U+FFFD. For display; text is put together by [`StreamDecoder`].
    pub fn piece_lossy(&self, id: TokenId) -> Option<String> {
        self.piece(id).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The text of a sequence of ids, without control tokens.
    ///
    /// Errors: an id outside the vocabulary.
    pub fn decode(&self, ids: &[TokenId]) -> Result<String, TokenizerError> {
        let mut decoder = StreamDecoder::new();
        let mut text = String::new();
        for &id in ids {
            text.push_str(&decoder.push(self, id)?);
        }
        text.push_str(&decoder.finish());
        Ok(text)
    }

    /// What a token is. `None` for an id outside the vocabulary.
    pub fn kind(&self, id: TokenId) -> Option<TokenKind> {
        self.kinds.get(id.index()).copied()
    }

    /// Whether a generation ends at this token.
    pub fn is_end_of_generation(&self, id: TokenId) -> bool {
        self.end_of_generation.binary_search(&id).is_ok()
    }

    /// Every token at which a generation ends, ascending.
    pub fn end_of_generation(&self) -> &[TokenId] {
        &self.end_of_generation
    }

    /// The texts of all control tokens, in the order of their ids.
    pub fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.special.controls()
    }

    /// How many tokens there are.
    pub fn vocab_size(&self) -> usize {
        self.texts.len()
    }

    /// The beginning-of-sequence token, where the file names one.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// The end-of-sequence token, where the file names one.
    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// The token that a raw prompt begins with, where the file asks for one. (A chat template writes its own.)
    pub fn leading_bos(&self) -> Option<TokenId> {
        self.bos.filter(|_| self.add_bos)
    }

    /// The text of a token as the file writes it. `None` for an id outside the vocabulary.
    pub fn raw_text(&self, id: TokenId) -> Option<&str> {
        self.texts.get(id.index()).map(String::as_str)
    }
}

/// Types from `tokenizer.ggml.token_type`; all are normal where the key is absent.
fn token_kinds(metadata: &Metadata, vocab_size: usize) -> Result<Vec<TokenKind>, TokenizerError> {
    let Some(types) = metadata.opt_i32_array(keys::TOKENIZER_TOKEN_TYPE)? else {
        return Ok(vec![TokenKind::Normal; vocab_size]);
    };
    if types.len() != vocab_size {
        return Err(TokenizerError::TypeCount { found: types.len(), wanted: vocab_size });
    }
    types
        .iter()
        .enumerate()
        .map(|(id, &t)| match t {
            // 0 is "undefined" and 6 a byte token of SentencePiece: neither is special in a byte-level vocabulary.
            0 | 1 | 6 => Ok(TokenKind::Normal),
            // The unknown token (2) is never text, so it is treated like a control token.
            2 | 3 => Ok(TokenKind::Control),
            4 => Ok(TokenKind::UserDefined),
            5 => Ok(TokenKind::Unused),
            found => Err(TokenizerError::TokenType { id, found }),
        })
        .collect()
}

/// The merging model, after checks that no word can be lost in it.
fn byte_pair_encoding(texts: &[String], merges: &[String]) -> Result<BPE, TokenizerError> {
    // Where a text occurs twice the lower id is the one that text becomes.
    let mut vocabulary: HashMap<String, u32> = HashMap::with_capacity(texts.len());
    for (id, text) in (0u32..).zip(texts) {
        vocabulary.entry(text.clone()).or_insert(id);
    }
    // A byte without a token would vanish from the text. (Bytes that UTF-8 never uses may lack one.)
    for byte in (0..=0xF4u8).filter(|b| !matches!(b, 0xC0 | 0xC1)) {
        if !vocabulary.contains_key(&bytes::to_alphabet(&[byte])) {
            return Err(TokenizerError::MissingByte { byte });
        }
    }
    let mut pairs = Vec::with_capacity(merges.len());
    for (index, merge) in merges.iter().enumerate() {
        let Some((left, right)) = merge.split_once(' ').filter(|(l, r)| !l.is_empty() && !r.is_empty())
        else {
            return Err(TokenizerError::Merge { index, found: merge.clone() });
        };
        pairs.push((left.to_owned(), right.to_owned()));
    }
    let vocabulary = vocabulary.into_iter().collect::<tokenizers::models::bpe::Vocab>();
    BPE::builder().vocab_and_merges(vocabulary, pairs).build().map_err(TokenizerError::Bpe)
}
