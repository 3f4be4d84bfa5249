//! Why a model cannot be lowered.

use crate::config::ConfigError;
use crate::gguf::keys;
use crate::quant::{Format, GgmlType, UnknownFormat};
use crate::shown::{shown, shown_list};
use crate::verify::GraphError;

/// A model that cannot be lowered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LowerError {
    /// The metadata.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A tensor that the architecture needs.
    #[error(
        "tensor {} is missing: wanted {wanted:?}; the file is incomplete (is a part of a split file absent?)",
        shown(name)
    )]
    MissingTensor {
        /// Its name.
        name: String,
        /// Its shape.
        wanted: Vec<usize>,
    },
    /// A tensor of another shape than the metadata says.
    #[error(
        "tensor {}: found shape {found:?}, wanted {wanted:?} by the metadata (outermost first)",
        shown(name)
    )]
    TensorShape {
        /// Its name.
        name: String,
        /// In the file.
        found: Vec<usize>,
        /// By the metadata.
        wanted: Vec<usize>,
    },
    /// More tokens than the embedding table has rows.
    #[error(
        "tokenizer.ggml.tokens: found {tokens} tokens, wanted at most {rows}, the rows of {}; tokenizer and weights do not \
         belong together: convert the model again",
        keys::tensor::TOKEN_EMBD
    )]
    TokensBeyondRows {
        /// In `tokenizer.ggml.tokens`.
        tokens: usize,
        /// Of the embedding table.
        rows: usize,
    },
    /// A tensor that must be F32.
    #[error("tensor {}: found {}, wanted F32", shown(name), found.name())]
    TensorFormat {
        /// Its name.
        name: String,
        /// In the file.
        found: Format,
    },
    /// A tensor whose values the graph itself takes up, and that has others than it can have.
    #[error(
        "tensor {}: wanted {wanted} positive numbers, found others; the file may be damaged",
        shown(name)
    )]
    Values {
        /// Its name.
        name: String,
        /// How many values.
        wanted: usize,
    },
    /// A table of ids in another type.
    #[error("tensor {}: found {found}, wanted I32", shown(name))]
    IdsType {
        /// Its name.
        name: String,
        /// In the file.
        found: GgmlType,
    },
    /// A table with an id that there is not.
    #[error(
        "tensor {}: wanted ids from 0 to below {below}, found others; the file may be damaged",
        shown(name)
    )]
    Ids {
        /// Its name.
        name: String,
        /// How many there are.
        below: usize,
    },
    /// A tensor of a type that nothing here decodes.
    #[error("tensor {}: {source}; use a file quantized to one of those (Q4_K_M, for one)", shown(name))]
    TensorType {
        /// Its name.
        name: String,
        /// The type found.
        source: UnknownFormat,
    },
    /// The same matrix twice: by itself, and as rows of a tensor that joins several.
    #[error(
        "tensors {} and {}: found both, and the first holds the rows of the second, too; wanted one or the other: convert the model again",
        shown(fused),
        shown(separate)
    )]
    FusedTwice {
        /// The tensor that joins several.
        fused: String,
        /// The one by itself.
        separate: String,
    },
    /// A tensor whose meaning is known and that is not computed.
    #[error(
        "tensor {}: {what} is not supported; use a model without it, a newer moe-run may support it",
        shown(name)
    )]
    Unsupported {
        /// Its name.
        name: String,
        /// What it is.
        what: &'static str,
    },
    /// Tensors that the architecture does not know.
    #[error("architecture {architecture} has no place for {}: the model would run without {}; wanted only its known tensors, a newer moe-run may support it", shown_list(names), if names.len() == 1 { "it" } else { "them" })]
    UnusedTensors {
        /// The architecture.
        architecture: String,
        /// The first few of their names.
        names: Vec<String>,
    },
    /// The graph breaks a rule.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl LowerError {
    /// What is wrong, where the file's name stands by it already: errors of the metadata give it by themselves.
    #[must_use]
    pub fn without_file(&self) -> String {
        match self {
            LowerError::Config(ConfigError::Metadata(error)) => error.without_file(),
            other => other.to_string(),
        }
    }
}
