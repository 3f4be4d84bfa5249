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
use crate::quant::{Format, GgmlType, UnknownFormat};
use crate::shown::{shown, shown_list};
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

/// Shape and type of the tensors in a file, by name.
pub type TensorTable = BTreeMap<String, (Vec<usize>, GgmlType)>;

/// The tensor table of a file.
#[must_use]
pub fn tensor_table(file: &GgufFile) -> TensorTable {
    file.tensors().iter().map(|t| (t.name.clone(), (t.shape.clone(), t.ggml_type))).collect()
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
    for (name, (_, ggml_type)) in tensors {
        format_of(name, *ggml_type)?;
    }
    let mut config = ModelConfig::from_metadata(metadata, row)?;
    // A file without a tokenizer states its vocabulary by the embedding table alone.
    if let Some((shape, _)) = tensors.get(keys::tensor::TOKEN_EMBD)
        && let [outer @ .., vocab_size, _] = shape.as_slice()
        && without_outer_ones(outer).is_empty()
    {
        config.vocab_size = *vocab_size;
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

/// The format of a tensor, which must be one that is decoded here.
fn format_of(name: &str, ggml_type: GgmlType) -> Result<Format, LowerError> {
    ggml_type.format().map_err(|source| LowerError::TensorType { name: name.to_owned(), source })
}

/// A shape without the 1s that it begins with. In a file, which has the innermost dimension first, they are at the end,
/// where they change nothing: some writers add them, others leave them out.
fn without_outer_ones(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().take_while(|n| **n == 1).count();
    &shape[ones..]
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

    /// The weight of a tensor with the wanted shape, to which dimensions of 1 outside of it make no difference.
    ///
    /// # Errors
    /// [`LowerError::MissingTensor`], [`LowerError::TensorShape`] or [`LowerError::TensorType`].
    pub fn weight(&mut self, name: &str, wanted: &[usize]) -> Result<WeightId, LowerError> {
        let Some((shape, ggml_type)) = self.tensors.get(name) else {
            return Err(LowerError::MissingTensor { name: name.to_owned(), wanted: wanted.to_vec() });
        };
        if without_outer_ones(shape) != without_outer_ones(wanted) {
            return Err(LowerError::TensorShape {
                name: name.to_owned(),
                found: shape.clone(),
                wanted: wanted.to_vec(),
            });
        }
        if let Some(id) = self.used.get(name) {
            return Ok(*id);
        }
        let format = format_of(name, *ggml_type)?;
        let id = self.graph.add_weight(name, wanted.to_vec(), format);
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

    /// Matrices that read the same input: each a tensor by itself or, where the file has the tensor `fused`, its rows in
    /// this order (of each expert, where there are `experts`). `parts` are names and rows.
    ///
    /// # Errors
    /// As [`Lowering::weight`], and [`LowerError::FusedTwice`].
    pub fn matrices(
        &mut self,
        fused: &str,
        parts: &[(String, usize)],
        experts: Option<usize>,
        inner: usize,
    ) -> Result<Vec<WeightSlice>, LowerError> {
        let is_fused = self.has(fused);
        if let Some((separate, _)) = parts.iter().find(|(name, _)| is_fused && self.has(name)) {
            return Err(LowerError::FusedTwice { fused: fused.to_owned(), separate: separate.clone() });
        }
        let all_rows = parts.iter().map(|(_, rows)| rows).sum();
        let mut slices = Vec::with_capacity(parts.len());
        let mut first_row = 0;
        for (name, rows) in parts {
            let (name, tensor_rows) = if is_fused { (fused, all_rows) } else { (name.as_str(), *rows) };
            let mut slice = match experts {
                Some(experts) => self.expert_matrix(name, experts, tensor_rows, inner)?,
                None => self.matrix(name, tensor_rows, inner)?,
            };
            if is_fused {
                slice.rows = first_row..first_row + rows;
                first_row += rows;
            }
            slices.push(slice);
        }
        Ok(slices)
    }

    /// Refuses a tensor whose meaning is known and that is not computed.
    ///
    /// # Errors
    /// [`LowerError::Unsupported`] where the file has it.
    pub fn refuse(&self, name: &str, what: &'static str) -> Result<(), LowerError> {
        match self.has(name) {
            true => Err(LowerError::Unsupported { name: name.to_owned(), what }),
            false => Ok(()),
        }
    }
}

/// The one result of a node that has one.
pub(crate) fn only(outputs: Vec<ValueId>) -> ValueId {
    outputs[0]
}
