//! Stage 3: ModelConfig + tensors → Graph of ops, with a tap at every stage.
//!
//! Input: dimensions and the tensor table. Output: a verified [`Graph`]. An architecture is a row of [`ARCHITECTURES`]
//! plus one function built from `blocks/`; no other place asks for its name. A tensor of the file that lowering did
//! not use is an error: a model with a part that is silently left out is worse than one that is refused.

pub mod blocks;
mod qwen3;
mod qwen3moe;

use crate::config::{ConfigError, FfnKind, ModelConfig};
use crate::gguf::{GgufFile, MetaArray, Metadata, keys};
use crate::ir::{GateKind, Graph, RopePairing, ValueId, WeightHome, WeightId, WeightSlice};
use crate::quant::Format;
use crate::verify::{GraphError, verify};
use std::collections::BTreeMap;

/// One architecture: its defaults, and the function that lowers it.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// RoPE's base where the file lacks the key.
    pub rope_theta_default: f64,
    /// Which elements RoPE pairs.
    pub rope_pairing: RopePairing,
    /// Whether q and k are normed per head.
    pub qk_norm: bool,
    /// Dense or experts.
    pub ffn: FfnKind,
    /// Lowers a model.
    pub lower: fn(&mut Lowering<'_>) -> Result<(), LowerError>,
}

/// The table of architectures.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "qwen3moe",
        rope_theta_default: 1e6,
        rope_pairing: RopePairing::Half,
        qk_norm: true,
        ffn: FfnKind::Moe { gate: GateKind::Softmax, norm_topk_prob: true },
        lower: qwen3moe::lower,
    },
    Architecture {
        name: "qwen3",
        rope_theta_default: 1e6,
        rope_pairing: RopePairing::Half,
        qk_norm: true,
        ffn: FfnKind::Dense,
        lower: qwen3::lower,
    },
];

/// A model that cannot be lowered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LowerError {
    /// The metadata.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A tensor that the architecture needs.
    #[error(
        "tensor {name} is missing: wanted {wanted:?}; the file is incomplete (is a part of a split file absent?)"
    )]
    MissingTensor {
        /// Its name.
        name: String,
        /// Its shape.
        wanted: Vec<usize>,
    },
    /// A tensor of another shape than the metadata says.
    #[error("tensor {name}: found shape {found:?}, wanted {wanted:?} by the metadata (outermost first)")]
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
    #[error("tensor {name}: found {}, wanted F32", found.name())]
    TensorFormat {
        /// Its name.
        name: String,
        /// In the file.
        found: Format,
    },
    /// Tensors that the architecture does not know.
    #[error("architecture {architecture} has no place for {}: the model would run without {}; wanted only its known tensors, a newer moe-run may support it", names.join(", "), if names.len() == 1 { "it" } else { "them" })]
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

/// Shape and format of the tensors in a file, by name.
pub type TensorTable = BTreeMap<String, (Vec<usize>, Format)>;

/// The tensor table of a file.
#[must_use]
pub fn tensor_table(file: &GgufFile) -> TensorTable {
    file.tensors().iter().map(|t| (t.name.clone(), (t.shape.clone(), t.format))).collect()
}

/// The row of the architecture that the metadata names.
///
/// # Errors
/// [`ConfigError`] for a missing key or an unlisted architecture.
pub fn architecture(metadata: &Metadata) -> Result<&'static Architecture, ConfigError> {
    let name = metadata.str(keys::GENERAL_ARCHITECTURE)?;
    ARCHITECTURES.iter().find(|row| row.name == name).ok_or_else(|| ConfigError::Architecture {
        found: name.to_owned(),
        known: ARCHITECTURES.iter().map(|row| row.name).collect(),
    })
}

/// Lowers a model.
///
/// # Errors
/// [`LowerError`] naming the key or tensor, what was found and what was wanted.
pub fn lower(metadata: &Metadata, tensors: &TensorTable) -> Result<(ModelConfig, Graph), LowerError> {
    let row = architecture(metadata)?;
    let mut config = ModelConfig::from_metadata(metadata, row)?;
    // A file without a tokenizer states its vocabulary by the embedding table alone.
    if let Some((shape, _)) = tensors.get(keys::tensor::TOKEN_EMBD)
        && let [vocab_size, _] = shape[..]
    {
        config.vocab_size = vocab_size;
    }
    let mut lowering = Lowering { config: &config, tensors, used: BTreeMap::new(), graph: Graph::new() };
    lowering.graph.num_layers = config.num_hidden_layers;
    (row.lower)(&mut lowering)?;
    lowering.graph.num_tokens = padded_vocabulary(metadata, config.vocab_size)?;
    let Lowering { used, graph, .. } = lowering;
    let names: Vec<String> =
        tensors.keys().filter(|name| !used.contains_key(*name)).take(4).cloned().collect();
    if !names.is_empty() {
        return Err(LowerError::UnusedTensors { architecture: config.architecture, names });
    }
    verify(&graph, "lower")?;
    Ok((config, graph))
}

/// How many tokens there are, where they are fewer than the embedding table's `rows`.
///
/// # Errors
/// [`LowerError::TokensBeyondRows`]. A file without tokens has nothing to compare.
fn padded_vocabulary(metadata: &Metadata, rows: usize) -> Result<Option<usize>, LowerError> {
    match metadata.opt_array(keys::TOKENIZER_TOKENS).ok().flatten().map(MetaArray::len) {
        Some(tokens) if tokens > rows => Err(LowerError::TokensBeyondRows { tokens, rows }),
        Some(tokens) if (1..rows).contains(&tokens) => Ok(Some(tokens)),
        _ => Ok(None),
    }
}

/// A lowering in progress: what the blocks share.
#[derive(Debug)]
pub struct Lowering<'a> {
    /// The dimensions.
    pub config: &'a ModelConfig,
    /// The graph so far.
    pub graph: Graph,
    tensors: &'a TensorTable,
    used: BTreeMap<String, WeightId>,
}

impl Lowering<'_> {
    /// Whether the file has a tensor.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The weight of a tensor with the wanted shape.
    ///
    /// # Errors
    /// [`LowerError::MissingTensor`] or [`LowerError::TensorShape`].
    pub fn weight(&mut self, name: &str, wanted: &[usize]) -> Result<WeightId, LowerError> {
        let Some((shape, format)) = self.tensors.get(name) else {
            return Err(LowerError::MissingTensor { name: name.to_owned(), wanted: wanted.to_vec() });
        };
        if shape != wanted {
            return Err(LowerError::TensorShape {
                name: name.to_owned(),
                found: shape.clone(),
                wanted: wanted.to_vec(),
            });
        }
        if let Some(id) = self.used.get(name) {
            return Ok(*id);
        }
        let id = self.graph.add_weight(name, shape.clone(), *format);
        self.used.insert(name.to_owned(), id);
        Ok(id)
    }

    /// A vector that must be F32: norms and biases.
    ///
    /// # Errors
    /// As [`Lowering::weight`], and [`LowerError::TensorFormat`].
    pub fn vector(&mut self, name: &str, len: usize) -> Result<WeightId, LowerError> {
        let id = self.weight(name, &[len])?;
        let found = self.graph.weight(id).format;
        if found != Format::F32 {
            return Err(LowerError::TensorFormat { name: name.to_owned(), found });
        }
        Ok(id)
    }

    /// The whole of a matrix [out, in].
    ///
    /// # Errors
    /// As [`Lowering::weight`].
    pub fn matrix(&mut self, name: &str, out: usize, inner: usize) -> Result<WeightSlice, LowerError> {
        let tensor = self.weight(name, &[out, inner])?;
        Ok(WeightSlice { tensor, rows: 0..out, experts: None, home: WeightHome::Device })
    }

    /// The whole of the experts' matrices [E, out, in].
    ///
    /// # Errors
    /// As [`Lowering::weight`].
    pub fn expert_matrix(
        &mut self,
        name: &str,
        experts: usize,
        out: usize,
        inner: usize,
    ) -> Result<WeightSlice, LowerError> {
        let tensor = self.weight(name, &[experts, out, inner])?;
        Ok(WeightSlice { tensor, rows: 0..out, experts: Some(0..experts), home: WeightHome::Device })
    }
}

/// The one result of a node that has one.
pub(crate) fn only(outputs: Vec<ValueId>) -> ValueId {
    outputs[0]
}
