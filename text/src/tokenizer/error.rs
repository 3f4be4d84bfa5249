//! What can be wrong with a tokenizer.

use thiserror::Error;

use moe_run_graph::{gguf::GgufError, shown::shown};

use super::method::MODELS;

/// Why a tokenizer could not be built or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file has no tokenizer.
    #[error(
        "{}: the file has no tokenizer (key \"tokenizer.ggml.model\"), so it takes no text; `run`, `trace` and `parity` \
         take token ids (--tokens)",
        shown(file)
    )]
    Absent {
        /// File concerned.
        file: String,
    },
    /// A kind of tokenizer that is not known.
    #[error(
        "{}: tokenizer.ggml.model: found {found:?}, wanted one of {MODELS}, so there is no text; `run`, \
         `trace` and `parity` take token ids (--tokens)",
        shown(file)
    )]
    Model {
        /// File concerned.
        file: String,
        /// What the file states.
        found: String,
    },
    /// A pre-tokenizer that is not known.
    #[error(
        "{}: tokenizer.ggml.pre: found {found:?}, wanted one of {known}; a wrong one would give wrong ids silently, so \
         there is no text; `run`, `trace` and `parity` take token ids (--tokens)",
        shown(file)
    )]
    PreTokenizer {
        /// File concerned.
        file: String,
        /// What the file states.
        found: String,
        /// The names that are known.
        known: String,
    },
    /// A metadata key that is absent or of the wrong type.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// No tokens, or more than ids can count.
    #[error("tokenizer.ggml.tokens: found {found} tokens, wanted 1 to 4294967295; convert the model again")]
    VocabularySize {
        /// How many there are.
        found: usize,
    },
    /// `token_type` and `tokens` differ in length.
    #[error(
        "tokenizer.ggml.token_type: found {found} types, wanted {wanted}, one per token; convert the model again"
    )]
    TypeCount {
        /// How many types there are.
        found: usize,
        /// How many tokens there are.
        wanted: usize,
    },
    /// `scores` and `tokens` differ in length.
    #[error(
        "tokenizer.ggml.scores: found {found} scores, wanted {wanted}, one per token; convert the model again"
    )]
    ScoreCount {
        /// How many scores there are.
        found: usize,
        /// How many tokens there are.
        wanted: usize,
    },
    /// A text that positions cannot count.
    #[error("found a text of {bytes} bytes, wanted less than 4294967296; give it in parts")]
    TextSize {
        /// How many bytes it has.
        bytes: usize,
    },
    /// Control and user-defined tokens that are longer, or more, than can be looked for in a text.
    #[error(
        "tokenizer.ggml.tokens: found control and user-defined tokens of {bytes} bytes, the longest of {longest}, wanted at \
         most {} and {}; convert the model again",
        super::special::MAX_BYTES,
        super::special::MAX_TOKEN_BYTES
    )]
    SpecialTokens {
        /// Of all of them together.
        bytes: usize,
        /// Of the longest.
        longest: usize,
    },
    /// A token type outside 0 to 6.
    #[error("tokenizer.ggml.token_type: token {id} has type {found}, wanted 0 to 6; convert the model again")]
    TokenType {
        /// The token.
        id: usize,
        /// Its type.
        found: i32,
    },
    /// A byte that no token stands for.
    #[error(
        "tokenizer.ggml.tokens: no token stands for byte {byte:#04x}, so text with it could not be encoded; convert the model again"
    )]
    MissingByte {
        /// The byte.
        byte: u8,
    },
    /// A merge that is not two tokens with a space between.
    #[error(
        "tokenizer.ggml.merges: entry {index} is {found:?}, wanted two tokens with a space between; convert the model again"
    )]
    Merge {
        /// Which one, from 0.
        index: usize,
        /// What it says.
        found: String,
    },
    /// The BPE model refused the vocabulary or a word.
    #[error(
        "byte-pair encoding: {}; merges and tokens of the file contradict each other: convert the model again",
        shown(.0)
    )]
    Bpe(Box<dyn std::error::Error + Send + Sync>),
    /// An id outside the vocabulary.
    #[error("token {id} is outside of the vocabulary of {vocab_size} tokens; give ids below that")]
    UnknownToken {
        /// The id.
        id: u32,
        /// How many tokens there are.
        vocab_size: usize,
    },
}

impl TokenizerError {
    /// Whether there is only no text: token ids run all the same.
    pub fn leaves_ids(&self) -> bool {
        matches!(
            self,
            TokenizerError::Absent { .. }
                | TokenizerError::Model { .. }
                | TokenizerError::PreTokenizer { .. }
        )
    }
}
