//! Stage 8 and the way in: text ↔ token ids, by the tokenizer that the file itself states.
//!
//! Input: the metadata of a GGUF file. Output: a [`Tokenizer`], built once and then read-only.
//! `method` says which of the known kinds it is, `model` holds these: byte-level BPE (`tokenizer.ggml.model` "gpt2"), cut into
//! words by one of the `rules` as `tokenizer.ggml.pre` names it, and BPE over lines (gemma4, sarvam-moe), whose merging is
//! the `tokenizers` crate's; and `sentencepiece`. A name that is not listed is refused.
//! Deliberately absent: Unicode normalisation (these files are made for readers that do none), and the guessing of a
//! tokenizer from a model's name.
//!
//! Token types: *control* tokens (`<|im_end|>`) steer the model and are read from text only where the caller says that the
//! text may hold them ([`ControlTokens::Parse`]); *user-defined* tokens (`<think>`) are text that happens to be one token,
//! and are always read. Where a file's types are absent or wrong, `kinds` puts them right.

mod bytes;
mod error;
mod kinds;
mod method;
mod model;
mod pretokenize;
mod rules;
mod sentencepiece;
mod special;
mod stream;
mod summary;
mod warning;

use moe_run_graph::{
    gguf::{Metadata, keys},
    ids::TokenId,
};

use crate::chat::Rendered;
use method::Method;
use model::Model;
use special::{Fragment, SpecialTokens};

pub use error::TokenizerError;
pub use kinds::Correction;
pub use stream::{StreamDecoder, Utf8Stream};
pub use summary::TokenizerSummary;
pub use warning::TokenizerWarning;

/// Whether control tokens that are spelled out in a text become control tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlTokens {
    /// `<|im_end|>` is the control token.
    Parse,
    /// `<|im_end|>` is ten characters of plain text.
    Literal,
}

/// What a token is: by `tokenizer.ggml.token_type`, where that is not wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenKind {
    /// Text, or part of a character in the byte-level alphabet.
    Normal,
    /// One byte that is spelled out, `<0x0A>`.
    Byte,
    /// Steers the model; is no text.
    Control,
    /// Text that is one token whatever the merges say.
    UserDefined,
    /// A place in the vocabulary that training never used.
    Unused,
}

/// Text ↔ ids, as one GGUF file states it.
#[derive(Debug)]
pub struct Tokenizer {
    model: Model,
    special: SpecialTokens,
    /// The texts of the vocabulary as the file writes them (normal tokens in the byte-level alphabet, or with U+2581 for blanks).
    texts: Vec<String>,
    kinds: Vec<TokenKind>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    end_of_generation: Vec<TokenId>,
    add_bos: bool,
    add_eos: bool,
    warnings: Vec<TokenizerWarning>,
}

/// The ids that `tokenizer.ggml.*_token_id` state.
struct SpecialIds {
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    eot: Option<TokenId>,
    eom: Option<TokenId>,
    padding: Option<TokenId>,
    /// Keys whose id no token has, as −1 and 4294967295 mean "none".
    out_of_range: Vec<(&'static str, i128)>,
}

impl SpecialIds {
    /// Errors: a key that is no integer.
    fn of_file(metadata: &Metadata, vocab_size: usize) -> Result<SpecialIds, TokenizerError> {
        let mut out_of_range = Vec::new();
        let mut read = |key: &'static str| -> Result<Option<TokenId>, TokenizerError> {
            let Some(found) = metadata.opt_integer(key)? else { return Ok(None) };
            let id = u32::try_from(found).ok().map(TokenId).filter(|id| id.index() < vocab_size);
            if id.is_none() {
                out_of_range.push((key, found));
            }
            Ok(id)
        };
        let (bos, eos) = (read(keys::TOKENIZER_BOS)?, read(keys::TOKENIZER_EOS)?);
        let (eot, eom) = (read(keys::TOKENIZER_EOT)?, read(keys::TOKENIZER_EOM)?);
        let padding = read(keys::TOKENIZER_PADDING)?;
        Ok(SpecialIds { bos, eos, eot, eom, padding, out_of_range })
    }

    /// With SentencePiece's ids where no key says so: 1 begins and 2 ends a text, if they are control tokens.
    ///
    /// Errors: the file's types cannot be read.
    fn with_defaults(mut self, metadata: &Metadata, method: &Method) -> Result<SpecialIds, TokenizerError> {
        const CONTROL: i32 = 3;
        if !matches!(method, Method::SentencePiece) {
            return Ok(self);
        }
        let types = metadata.opt_i32_array(keys::TOKENIZER_TOKEN_TYPE)?;
        for (key, id, default) in
            [(keys::TOKENIZER_BOS, &mut self.bos, 1), (keys::TOKENIZER_EOS, &mut self.eos, 2)]
        {
            let is_control = types.as_ref().is_some_and(|types| types.get(default) == Some(&CONTROL));
            if metadata.get(key).is_none() && is_control {
                *id = Some(TokenId(default as u32));
            }
        }
        Ok(self)
    }
}

impl Tokenizer {
    /// The tokenizer that `tokenizer.ggml.*` describes. What it takes otherwise than the file says it, it warns of.
    ///
    /// Errors: there is none in the file, it is of a kind that is not known, or its keys contradict each other.
    pub fn from_metadata(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
        let (method, unnamed) = Method::of_file(metadata)?;
        let texts = metadata.string_array(keys::TOKENIZER_TOKENS)?.to_vec();
        if texts.is_empty() || u32::try_from(texts.len()).is_err() {
            return Err(TokenizerError::VocabularySize { found: texts.len() });
        }
        let kinds = kinds::of_file(metadata, &texts, method.has_byte_tokens())?;
        let adds_bos = method.adds_bos(metadata.opt_bool(keys::TOKENIZER_ADD_BOS)?);
        let adds_eos = metadata.opt_bool(keys::TOKENIZER_ADD_EOS)?.unwrap_or(false);
        let ids = SpecialIds::of_file(metadata, texts.len())?.with_defaults(metadata, &method)?;
        let model = Model::new(method, metadata, &texts, &kinds)?;

        let mut warnings: Vec<TokenizerWarning> = unnamed.into_iter().collect();
        if !ids.out_of_range.is_empty() {
            warnings.push(TokenizerWarning::Ids {
                file: metadata.origin().to_owned(),
                found: ids.out_of_range,
                vocab_size: texts.len(),
            });
        }
        let SpecialIds { bos, eos, eot, eom, padding, .. } = ids;
        let mut tokenizer = Tokenizer {
            model,
            special: SpecialTokens::default(),
            texts,
            kinds: Vec::new(),
            bos,
            eos,
            end_of_generation: Vec::new(),
            add_bos: adds_bos && bos.is_some(),
            add_eos: adds_eos && eos.is_some(),
            warnings,
        };
        tokenizer.set_kinds(metadata, kinds, &[bos, eos, eot, eom, padding])?;
        let named = [eos, eot, eom].into_iter().flatten();
        tokenizer.end_of_generation = kinds::ends(&tokenizer.texts, &tokenizer.kinds, named);
        Ok(tokenizer)
    }

    /// Whether the file has a tokenizer of a kind that is known: what can be said without building it.
    ///
    /// Errors: it has none, or one that is not known.
    pub fn check_kind(metadata: &Metadata) -> Result<(), TokenizerError> {
        Method::of_file(metadata).map(drop)
    }

    /// Takes the file's types, put right where they are wrong.
    fn set_kinds(
        &mut self,
        metadata: &Metadata,
        mut kinds: Vec<TokenKind>,
        named: &[Option<TokenId>],
    ) -> Result<(), TokenizerError> {
        let of_file = kinds.clone();
        let named: Vec<TokenId> = named.iter().copied().flatten().collect();
        // SentencePiece's control symbols have the highest score, so that without types merging would give them.
        let is_symbol = |id| !self.is_byte_level() && named.contains(&id);
        let is_word = |text: &str, id| !is_symbol(id) && self.model.is_word(text, id, &of_file);
        let corrections = kinds::correct(metadata, &self.texts, &mut kinds, &named, is_word)?;
        if !corrections.is_empty() {
            self.warnings.push(TokenizerWarning::Types { file: metadata.origin().to_owned(), corrections });
        }
        self.special = SpecialTokens::new(&self.texts, &kinds)?;
        self.kinds = kinds;
        Ok(())
    }

    /// What the file says and this takes otherwise: for the user to know.
    pub fn warnings(&self) -> &[TokenizerWarning] {
        &self.warnings
    }

    /// The ids of a text. User-defined tokens are always read, control tokens as `control` says. No BOS is added.
    ///
    /// Errors: a character that the vocabulary has no bytes for.
    pub fn encode(&self, text: &str, control: ControlTokens) -> Result<Vec<TokenId>, TokenizerError> {
        let mut ids = Vec::new();
        for fragment in self.special.split(text, control) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => self.model.encode(text, &self.kinds, &mut ids)?,
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

    /// The bytes that a token stands for: of a normal token its bytes (not necessarily whole UTF-8 characters), of any
    /// other its text. `None` for an id outside the vocabulary.
    pub fn piece(&self, id: TokenId) -> Option<Vec<u8>> {
        let text = self.texts.get(id.index())?;
        let plain = || text.as_bytes().to_vec();
        Some(match self.kinds[id.index()] {
            TokenKind::Normal => self.model.bytes(text),
            TokenKind::Byte => self.model.byte(text).map_or_else(plain, |byte| vec![byte]),
            TokenKind::Control | TokenKind::UserDefined | TokenKind::Unused => plain(),
        })
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

    /// The token that a whole text ends with, where the file asks for one. (A prompt that is to be answered has none.)
    pub fn trailing_eos(&self) -> Option<TokenId> {
        self.eos.filter(|_| self.add_eos)
    }

    /// Whether normal tokens are written in the byte-level alphabet, so that every text comes back; otherwise U+2581 comes back
    /// as a space.
    pub fn is_byte_level(&self) -> bool {
        matches!(self.model, Model::ByteLevel { .. })
    }

    /// Whether a text gets a space in front, at its beginning and behind control and user-defined tokens.
    pub fn adds_space_prefix(&self) -> bool {
        self.model.adds_space_prefix()
    }

    /// The text of a token as the file writes it. `None` for an id outside the vocabulary.
    pub fn raw_text(&self, id: TokenId) -> Option<&str> {
        self.texts.get(id.index()).map(String::as_str)
    }
}
