//! What a tokenizer takes otherwise than its file says it.

use std::fmt;

use super::{Correction, TokenKind};
use moe_run_graph::shown::shown;

/// How many tokens a warning names; the rest it counts.
const NAMED: usize = 4;
/// The most characters of a token's text that it shows.
const TEXT_CHARS: usize = 40;

/// Something in a file's tokenizer that is wrong, and could be put right. Displayed in one line.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TokenizerWarning {
    /// Keys name tokens that do not exist: they count as absent.
    Ids {
        /// File concerned.
        file: String,
        /// Each key, and the id that it states.
        found: Vec<(&'static str, i128)>,
        /// How many tokens there are.
        vocab_size: usize,
    },
    /// Tokens of the wrong type: they count as what their texts and use say.
    Types {
        /// File concerned.
        file: String,
        /// The tokens, in the order of ids; at least one.
        corrections: Vec<Correction>,
    },
    /// The file does not say how its text is cut into words, or only "default": it is cut by the rule of that name.
    PreTokenizer {
        /// File concerned.
        file: String,
        /// What the file says, if anything.
        found: Option<String>,
    },
}

impl fmt::Display for TokenizerWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenizerWarning::Ids { file, found, vocab_size } => {
                let each: Vec<String> = found.iter().map(|(key, id)| format!("{key} is {id}")).collect();
                let (ids, they) =
                    if each.len() == 1 { ("an id", "it counts") } else { ("ids", "they count") };
                write!(
                    f,
                    "{}: {}, wanted {ids} below the vocabulary's {vocab_size}; {they} as absent",
                    shown(file),
                    each.join(", ")
                )
            }
            TokenizerWarning::PreTokenizer { file, found } => {
                write!(f, "{}: tokenizer.ggml.pre is ", shown(file))?;
                match found {
                    Some(found) => write!(f, "{found:?}")?,
                    None => f.write_str("absent")?,
                }
                f.write_str(
                    ", so text is cut by llama.cpp's rule of older files, which may not be how the model was trained; convert \
                     the model again",
                )
            }
            TokenizerWarning::Types { file, corrections } => {
                let has_types = corrections.iter().all(|c| c.found.is_some());
                let key = if has_types { "is wrong for" } else { "is absent, which is wrong for" };
                let tokens = if corrections.len() == 1 { "token" } else { "tokens" };
                write!(
                    f,
                    "{}: tokenizer.ggml.token_type {key} {} {tokens}: ",
                    shown(file),
                    corrections.len()
                )?;
                for (i, correction) in corrections.iter().take(NAMED).enumerate() {
                    let text: String = correction.text.chars().take(TEXT_CHARS).collect();
                    let more = if text.len() < correction.text.len() { "…" } else { "" };
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{text:?}{more} ")?;
                    match (correction.found, correction.taken_as) {
                        (Some(found), TokenKind::Control) => write!(f, "({found}, taken as control)")?,
                        (Some(found), _) => write!(f, "({found}, taken as user-defined)")?,
                        (None, TokenKind::Control) => f.write_str("(taken as control)")?,
                        (None, _) => f.write_str("(taken as user-defined)")?,
                    }
                }
                match corrections.len().saturating_sub(NAMED) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
        }
    }
}
