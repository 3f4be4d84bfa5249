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
//! and are always read. Where a file's types are absent or wrong, `kinds` puts them right.

mod bytes;
mod error;
mod kinds;
mod pretokenize;
mod special;
mod stream;
mod warning;

use std::collections::HashMap;

use tokenizers::{Model, models::bpe::BPE};

use moe_run_graph::{
    gguf::{Metadata, keys},
    ids::TokenId,
};

use crate::chat::Rendered;
use pretokenize::PreTokenizer;
use special::{Fragment, SpecialTokens};

pub use error::TokenizerError;
pub use kinds::Correction;
pub use stream::{StreamDecoder, Utf8Stream};
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
    /// A byte sequence of the byte-level alphabet.
    Normal,
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
    bpe: BPE,
    /// Bytes that a text may hold and no token stands for; hardly ever any.
    missing_bytes: Vec<u8>,
    pre_tokenizer: PreTokenizer,
    special: SpecialTokens,
    /// The texts of the vocabulary as the file writes them (byte-level alphabet for normal tokens).
    texts: Vec<String>,
    kinds: Vec<TokenKind>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    end_of_generation: Vec<TokenId>,
    add_bos: bool,
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
}

/// How the file's text is cut into words.
///
/// Errors: the file has no tokenizer, or one of a kind that is not known.
fn pre_tokenizer(metadata: &Metadata) -> Result<PreTokenizer, TokenizerError> {
    let file = || metadata.origin().to_owned();
    let model = metadata.opt_str(keys::TOKENIZER_MODEL)?;
    let Some(model) = model.filter(|model| !keys::TOKENIZER_MODEL_NONE.contains(model)) else {
        return Err(TokenizerError::Absent { file: file() });
    };
    if model != "gpt2" {
        return Err(TokenizerError::Model { file: file(), found: model.to_owned() });
    }
    let known = PreTokenizer::known_names;
    let Some(name) = metadata.opt_str(keys::TOKENIZER_PRE)? else {
        return Err(TokenizerError::PreTokenizerAbsent { file: file(), known: known() });
    };
    PreTokenizer::by_name(name).ok_or_else(|| TokenizerError::PreTokenizer {
        file: file(),
        found: name.to_owned(),
        known: known(),
    })
}

impl Tokenizer {
    /// The tokenizer that `tokenizer.ggml.*` describes. What it takes otherwise than the file says it, it warns of.
    ///
    /// Errors: there is none in the file, it is of a kind that is not known, or its keys contradict each other.
    pub fn from_metadata(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
        let pre_tokenizer = pre_tokenizer(metadata)?;
        let texts = metadata.string_array(keys::TOKENIZER_TOKENS)?.to_vec();
        if texts.is_empty() || u32::try_from(texts.len()).is_err() {
            return Err(TokenizerError::VocabularySize { found: texts.len() });
        }
        let kinds = kinds::of_file(metadata, texts.len())?;
        let merges = metadata.string_array(keys::TOKENIZER_MERGES)?;
        let (bpe, missing_bytes) = byte_pair_encoding(&texts, merges, pre_tokenizer.ignores_merges())?;

        let mut warnings = Vec::new();
        let ids = SpecialIds::of_file(metadata, texts.len())?;
        if !ids.out_of_range.is_empty() {
            warnings.push(TokenizerWarning::Ids {
                file: metadata.origin().to_owned(),
                found: ids.out_of_range,
                vocab_size: texts.len(),
            });
        }
        let SpecialIds { bos, eos, eot, eom, padding, .. } = ids;
        let adds_bos = metadata.opt_bool(keys::TOKENIZER_ADD_BOS)?.unwrap_or(pre_tokenizer.adds_bos());
        let mut tokenizer = Tokenizer {
            bpe,
            missing_bytes,
            pre_tokenizer,
            special: SpecialTokens::new(&[], &[]),
            texts,
            kinds: Vec::new(),
            bos,
            eos,
            end_of_generation: Vec::new(),
            add_bos: adds_bos && bos.is_some(),
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
        pre_tokenizer(metadata).map(drop)
    }

    /// Takes the file's types, put right where they are wrong.
    fn set_kinds(
        &mut self,
        metadata: &Metadata,
        mut kinds: Vec<TokenKind>,
        named: &[Option<TokenId>],
    ) -> Result<(), TokenizerError> {
        let is_word = |text: &str, id: TokenId| {
            let mut ids = Vec::new();
            self.encode_plain(text, &mut ids).is_ok() && ids == [id]
        };
        let named: Vec<TokenId> = named.iter().copied().flatten().collect();
        let corrections = kinds::correct(metadata, &self.texts, &mut kinds, &named, is_word)?;
        if !corrections.is_empty() {
            self.warnings.push(TokenizerWarning::Types { file: metadata.origin().to_owned(), corrections });
        }
        self.special = SpecialTokens::new(&self.texts, &kinds);
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
            if let Some(byte) = word.bytes().find(|byte| self.missing_bytes.contains(byte)) {
                return Err(TokenizerError::MissingByte { byte });
            }
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

/// The first byte of characters beyond U+3FFFF: some published vocabularies (starcoder's) lack it and those behind it. A text
/// with one is refused, not the file.
const FAR_PLANES: u8 = 0xF1;

/// Bytes that UTF-8 uses and no token stands for.
fn missing_bytes(vocabulary: &HashMap<String, u32>) -> impl Iterator<Item = u8> {
    let used = (0..=0xF4u8).filter(|b| !matches!(b, 0xC0 | 0xC1));
    used.filter(|byte| !vocabulary.contains_key(&bytes::to_alphabet(&[*byte])))
}

/// The merging model, after checks that no word can be lost in it; and the bytes that a text may not hold.
fn byte_pair_encoding(
    texts: &[String],
    merges: &[String],
    ignore_merges: bool,
) -> Result<(BPE, Vec<u8>), TokenizerError> {
    // Where a text occurs twice the lower id is the one that text becomes.
    let mut vocabulary: HashMap<String, u32> = HashMap::with_capacity(texts.len());
    for (id, text) in (0u32..).zip(texts) {
        vocabulary.entry(text.clone()).or_insert(id);
    }
    // A byte without a token would vanish from the text. (Bytes that UTF-8 never uses may lack one.)
    let missing: Vec<u8> = missing_bytes(&vocabulary).collect();
    if let Some(&byte) = missing.iter().find(|byte| **byte < FAR_PLANES) {
        return Err(TokenizerError::MissingByte { byte });
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
    let builder = BPE::builder().vocab_and_merges(vocabulary, pairs).ignore_merges(ignore_merges);
    Ok((builder.build().map_err(TokenizerError::Bpe)?, missing))
}
