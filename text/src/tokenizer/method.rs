//! Which of the known kinds of tokenizer a file has: by `tokenizer.ggml.model` and, of BPE, `tokenizer.ggml.pre`.

use moe_run_graph::gguf::{Metadata, keys};

use super::{TokenizerError, TokenizerWarning, pretokenize::PreTokenizer, rules::DEFAULT};

/// Values of `tokenizer.ggml.model` that are known, for messages.
pub const MODELS: &str = "\"gpt2\" (byte-level BPE), \"llama\" (SentencePiece), \"gemma4\"";

/// How text becomes tokens.
#[derive(Debug)]
pub enum Method {
    /// BPE over bytes, inside words.
    ByteLevel(PreTokenizer),
    /// BPE over characters, inside lines.
    Lines {
        /// A run of line ends that is a token is taken as that.
        whole_runs: bool,
    },
    /// Pieces with scores, merged by these.
    SentencePiece,
}

impl Method {
    /// The file's method, and a warning if the file does not name its pre-tokenizer.
    ///
    /// Errors: the file has no tokenizer, or one of a kind that is not known.
    pub fn of_file(metadata: &Metadata) -> Result<(Method, Option<TokenizerWarning>), TokenizerError> {
        let file = || metadata.origin().to_owned();
        let model = metadata.opt_str(keys::TOKENIZER_MODEL)?;
        let Some(model) = model.filter(|model| !keys::TOKENIZER_MODEL_NONE.contains(model)) else {
            return Err(TokenizerError::Absent { file: file() });
        };
        match model {
            "llama" => return Ok((Method::SentencePiece, None)),
            "gemma4" => return Ok((Method::Lines { whole_runs: true }, None)),
            "gpt2" => {}
            _ => return Err(TokenizerError::Model { file: file(), found: model.to_owned() }),
        }
        let stated = metadata.opt_str(keys::TOKENIZER_PRE)?;
        let name = stated.filter(|name| !name.is_empty()).unwrap_or(DEFAULT);
        match LINES.iter().find(|(known, _)| *known == name) {
            Some(&(_, whole_runs)) => Ok((Method::Lines { whole_runs }, None)),
            None => {
                let pre_tokenizer =
                    PreTokenizer::by_name(name).ok_or_else(|| TokenizerError::PreTokenizer {
                        file: file(),
                        found: name.to_owned(),
                        known: known_names(),
                    })?;
                let unnamed =
                    || TokenizerWarning::PreTokenizer { file: file(), found: stated.map(str::to_owned) };
                Ok((Method::ByteLevel(pre_tokenizer), (name == DEFAULT).then(unnamed)))
            }
        }
    }

    /// Whether a text begins with BOS: what the file says, else what is the rule for its kind.
    pub fn adds_bos(&self, stated: Option<bool>) -> bool {
        match self {
            Method::ByteLevel(pre_tokenizer) => stated.unwrap_or(pre_tokenizer.adds_bos()),
            // Gemma's answers are of no use without BOS, and files that deny it are wrong.
            Method::Lines { whole_runs: true } => true,
            Method::Lines { whole_runs: false } => stated.unwrap_or(false),
            Method::SentencePiece => stated.unwrap_or(true),
        }
    }

    /// Whether some tokens stand for single bytes, `<0x0A>`.
    pub fn has_byte_tokens(&self) -> bool {
        match self {
            Method::ByteLevel(_) => false,
            Method::Lines { .. } | Method::SentencePiece => true,
        }
    }
}

/// Names of `tokenizer.ggml.pre` for BPE over characters, and whether a run of line ends is taken as one token.
const LINES: [(&str, bool); 2] = [("gemma4", true), ("sarvam-moe", false)];

/// The names of `tokenizer.ggml.pre` that are known, in quotes.
fn known_names() -> String {
    let names = PreTokenizer::known_names().chain(LINES.iter().map(|(name, _)| *name));
    names.map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}
