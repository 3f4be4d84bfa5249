//! What becomes of each tensor: its format, and why that one.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use thiserror::Error;

use super::mixture::{self, Matrix, Mixture};
use super::{Importance, Recipe};
use crate::Model;
use crate::config::FfnConfig;
use crate::gguf::writer::{GgufLayout, TensorSpec, WriteError};
use crate::gguf::{GgufError, MetaValue, Metadata, TensorEntry, keys};
use crate::ir::{Graph, Op, ValueId};
use crate::quant::{Format, GgmlType, UnknownFormat};

/// What a matrix gets that no rule of a recipe speaks of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Base {
    /// The file's own format.
    #[default]
    Keep,
    /// One format for all.
    Format(Format),
    /// What a mixture gives it.
    Mixture(Mixture),
}

impl Base {
    /// The mixture or format of a name, in any case.
    ///
    /// # Errors
    /// There is none, or it is a format that is not written.
    pub fn parse(name: &str) -> Result<Base, String> {
        if let Some(mixture) = Mixture::parse(name) {
            return Ok(Base::Mixture(mixture));
        }
        let names = || {
            let formats = Format::WRITTEN.map(Format::name).join(", ");
            let mixtures: Vec<&str> = super::MIXTURES.iter().map(|mixture| mixture.name).collect();
            format!("wanted one of {formats} for every matrix, or of the mixtures {}", mixtures.join(", "))
        };
        match Format::parse(name) {
            Ok(format) if format.is_written() => Ok(Base::Format(format)),
            Ok(format) => Err(format!("{format} is not written, only read; {}", names())),
            Err(_) => Err(names()),
        }
    }
}

/// How formats are chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice<'a> {
    /// For what nothing else speaks of.
    pub base: Base,
    /// Before the base.
    pub recipe: Option<&'a Recipe>,
    /// Before both: formats by name.
    pub chosen: Option<&'a HashMap<String, Format>>,
}

/// Why a tensor has its format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The format or mixture that was asked for.
    Base,
    /// A rule of the recipe.
    Recipe,
    /// The budget of bits.
    Budget,
    /// The blocks of what was asked for do not divide its rows; this stands in.
    NoWholeBlocks,
    /// It is no matrix: norms, biases, factors, convolutions.
    Vector,
    /// It chooses experts, or weighs streams.
    Router,
    /// A table of ids: 32-bit integers, which count as F32 here and stay what they are.
    Ids,
    /// Nothing speaks of it, or what does says so.
    Kept,
}

impl Why {
    /// For a table.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Why::Base => "",
            Why::Recipe => "recipe",
            Why::Budget => "budget",
            Why::NoWholeBlocks => "stands in: no whole blocks",
            Why::Vector => "stays: no matrix",
            Why::Router => "stays: router",
            Why::Ids => "stays: ids",
            Why::Kept => "stays",
        }
    }
}

/// A tensor's line of the table.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Entry {
    /// The tensor.
    pub name: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// As the file has it.
    pub from: Format,
    /// As it will be.
    pub to: Format,
    /// Why.
    pub why: Why,
    /// Bytes as it will be.
    pub bytes: usize,
}

impl Entry {
    /// Elements.
    #[must_use]
    pub fn elems(&self) -> usize {
        self.shape.iter().product()
    }

    /// How it is stored where its format is `format`.
    #[must_use]
    pub fn stored(&self, format: Format) -> GgmlType {
        if self.why == Why::Ids { GgmlType::I32 } else { format.into() }
    }

    /// Elements of a row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Matrices that the tensor holds: its experts or heads, or 1.
    #[must_use]
    pub fn matrices(&self) -> usize {
        self.shape.iter().rev().skip(2).product()
    }
}

/// What cannot be quantized as was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A type that is not decoded here.
    #[error("tensor {tensor:?}: {source}")]
    TensorType {
        /// The tensor.
        tensor: String,
        /// Why.
        source: UnknownFormat,
    },
    /// A rule that is about nothing.
    #[error("recipe: {pattern:?} matches no matrix{}; `moe-run inspect --all` lists the names", if *vectors {
        " (norms, biases and routers stay as they are)"
    } else {
        ""
    })]
    NoMatch {
        /// The rule's pattern.
        pattern: String,
        /// It matches tensors that stay as they are.
        vectors: bool,
    },
    /// A rule that is never reached.
    #[error("recipe: {pattern:?} is never reached: rules before it take all that it matches; put it first")]
    Shadowed {
        /// The rule's pattern.
        pattern: String,
    },
    /// The file that would be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Its metadata.
    #[error(transparent)]
    Metadata(#[from] GgufError),
}

/// The table of a job, and where everything goes in its file.
#[derive(Debug)]
pub struct QuantizePlan {
    /// In the order of the file.
    pub entries: Vec<Entry>,
    /// Of the file to be written.
    pub layout: GgufLayout,
}

impl QuantizePlan {
    /// Chooses a format for every tensor of a model.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn new(
        model: &Model,
        choice: &Choice<'_>,
        importance: Option<&Importance>,
    ) -> Result<QuantizePlan, PlanError> {
        let roles = Roles::of(&model.graph);
        let mut entries = Vec::with_capacity(model.file.tensors().len());
        let mut used = vec![Reached::default(); choice.recipe.map_or(0, |recipe| recipe.rules.len())];
        let mut matrices = MatrixCounter::new(model, &roles);
        for tensor in model.file.tensors() {
            if tensor.ggml_type == GgmlType::I32 {
                let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
                let (from, to) = (Format::F32, Format::F32);
                entries.push(Entry { name, shape, from, to, why: Why::Ids, bytes: 0 });
                continue;
            }
            let from = tensor
                .format()
                .map_err(|source| PlanError::TensorType { tensor: tensor.name.clone(), source })?;
            let role = roles.role(tensor);
            let matrix = matrices.next(tensor);
            if let Some(recipe) = choice.recipe {
                reach(recipe, &tensor.name, role == Role::Matrix, &mut used);
            }
            let (wanted, why) = match role {
                Role::Vector => (None, Why::Vector),
                Role::Router => (None, Why::Router),
                Role::Matrix => wanted(choice, tensor, &matrix),
            };
            let cols = tensor.shape.last().copied().unwrap_or(1);
            let to = wanted.map_or(from, |wanted| mixture::stand_in(wanted, cols));
            let why = if wanted.is_some_and(|wanted| wanted != to) { Why::NoWholeBlocks } else { why };
            entries.push(Entry {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                from,
                to,
                why,
                bytes: 0,
            });
        }
        if let Some(recipe) = choice.recipe {
            for (rule, reached) in recipe.rules.iter().zip(used) {
                let pattern = rule.pattern.clone();
                match reached {
                    Reached { takes: true, .. } => {}
                    Reached { matrix: true, .. } => return Err(PlanError::Shadowed { pattern }),
                    Reached { other: vectors, .. } => return Err(PlanError::NoMatch { pattern, vectors }),
                }
            }
        }
        let metadata = metadata(model.metadata(), choice, importance)?;
        let specs: Vec<TensorSpec> = entries
            .iter()
            .map(|e| TensorSpec { name: e.name.clone(), shape: e.shape.clone(), format: e.stored(e.to) })
            .collect();
        let layout = GgufLayout::new(&metadata, &specs)?;
        for (entry, placed) in entries.iter_mut().zip(layout.tensors()) {
            entry.bytes = placed.len_bytes().unwrap_or(0);
        }
        Ok(QuantizePlan { entries, layout })
    }

    /// Bits a weight of all tensors together.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        let (bytes, elems) = self.entries.iter().fold((0, 0), |(b, n), e| (b + e.bytes, n + e.elems()));
        bytes as f64 * 8.0 / elems.max(1) as f64
    }

    /// The names of the matrices that formats can be chosen for.
    pub fn matrices(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| !matches!(entry.why, Why::Vector | Why::Router | Why::Ids))
    }
}

/// What a matrix is to be in, before its rows are looked at; `None`: as it is.
fn wanted(choice: &Choice<'_>, tensor: &TensorEntry, matrix: &Matrix<'_>) -> (Option<Format>, Why) {
    if let Some(format) = choice.chosen.and_then(|chosen| chosen.get(&tensor.name)) {
        return (Some(*format), Why::Budget);
    }
    if let Some((_, rule)) = choice.recipe.and_then(|recipe| recipe.find(&tensor.name)) {
        return (rule.format, if rule.format.is_some() { Why::Recipe } else { Why::Kept });
    }
    match choice.base {
        Base::Keep => (None, Why::Kept),
        Base::Format(format) => (Some(format), Why::Base),
        Base::Mixture(mixture) => (Some(mixture.format(matrix)), Why::Base),
    }
}

/// What came of a rule.
#[derive(Clone, Copy, Debug, Default)]
struct Reached {
    /// It decides about a matrix.
    takes: bool,
    /// It matches one.
    matrix: bool,
    /// It matches something else.
    other: bool,
}

fn reach(recipe: &Recipe, name: &str, is_matrix: bool, reached: &mut [Reached]) {
    let matching = recipe.rules.iter().zip(&mut *reached).filter(|(rule, _)| rule.matches(name));
    for (_, reached) in matching {
        reached.matrix |= is_matrix;
        reached.other |= !is_matrix;
    }
    if is_matrix && let Some((i, _)) = recipe.find(name) {
        reached[i].takes = true;
    }
}

/// What a tensor is to the graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// Multiplied with, or rows are looked up in it.
    Matrix,
    /// Makes the logits that experts are chosen by.
    Router,
    /// Anything else.
    Vector,
}

/// The roles of a graph's weights; what the graph leaves out has those of tensors that are called the same in other layers.
struct Roles<'g> {
    matrices: HashSet<&'g str>,
    routers: HashSet<&'g str>,
    /// Names behind `blk.<i>.` of matrices.
    rests: HashSet<&'g str>,
    /// Tensors that the graph reads.
    read: HashSet<&'g str>,
}

impl<'g> Roles<'g> {
    fn of(graph: &'g Graph) -> Roles<'g> {
        let name = |node: &crate::ir::Node| {
            node.op.weight_slice().map(|slice| graph.weight(slice.tensor).name.as_str())
        };
        let mut routers = HashSet::new();
        // What chooses or weighs experts, and what weighs streams: few numbers that everything hangs on.
        let weighs = |node: &&crate::ir::Node| {
            matches!(node.op, Op::Router(_) | Op::GivenExperts(_) | Op::HyperGates(_))
        };
        for node in graph.nodes.iter().filter(weighs) {
            // The products that its logits are made of.
            let mut todo: Vec<ValueId> = node.inputs.iter().take(1).copied().collect();
            while let Some(value) = todo.pop() {
                let producer = graph.value(value).producer.and_then(|id| graph.node(id));
                match producer {
                    Some(product) if product.op.weight_slice().is_some() => routers.extend(name(product)),
                    Some(other) if !matches!(other.op, Op::RmsNorm { .. } | Op::LayerNorm { .. }) => {
                        todo.extend(&other.inputs);
                    }
                    _ => {}
                }
            }
        }
        let matrices: HashSet<&str> = graph.nodes.iter().filter_map(name).collect();
        let rests = matrices.difference(&routers).map(|name| keys::split_blk(name).1).collect();
        let read = graph.weights.iter().map(|decl| decl.name.as_str()).collect();
        Roles { matrices, routers, rests, read }
    }

    fn role(&self, tensor: &TensorEntry) -> Role {
        let name = tensor.name.as_str();
        let is_matrix = match self.read.contains(name) {
            true => self.matrices.contains(name),
            false => self.rests.contains(keys::split_blk(name).1),
        };
        match (is_matrix && tensor.shape.len() > 1, self.routers.contains(name)) {
            (_, true) => Role::Router,
            (true, false) => Role::Matrix,
            (false, false) => Role::Vector,
        }
    }
}

/// Tells a mixture about one tensor after the other.
struct MatrixCounter {
    num_layers: usize,
    num_values: usize,
    values_before: usize,
    num_experts: usize,
    group_size: usize,
    tied: bool,
}

impl MatrixCounter {
    fn new(model: &Model, roles: &Roles<'_>) -> MatrixCounter {
        let config = &model.config;
        let experts = config.layers.iter().filter_map(|layer| match &layer.ffn {
            FfnConfig::Moe(moe) => Some(moe.num_experts),
            _ => None,
        });
        let attention = config.layers.first().map(|layer| &layer.attention);
        let values =
            model.file.tensors().iter().filter(|t| mixture::makes_values(keys::split_blk(&t.name).1));
        MatrixCounter {
            num_layers: config.num_hidden_layers + config.num_nextn_predict_layers,
            num_values: values.count(),
            values_before: 0,
            num_experts: experts.max().unwrap_or(0),
            group_size: attention.map_or(1, |a| a.num_attention_heads / a.num_key_value_heads.max(1)),
            tied: !roles.read.contains(keys::tensor::OUTPUT),
        }
    }

    fn next<'a>(&mut self, tensor: &'a TensorEntry) -> Matrix<'a> {
        let (layer, rest) = keys::split_blk(&tensor.name);
        let matrix = Matrix {
            rest,
            layer: layer.unwrap_or(0),
            num_layers: self.num_layers,
            values_before: self.values_before,
            num_values: self.num_values,
            num_experts: self.num_experts,
            group_size: self.group_size,
            tied: self.tied,
        };
        self.values_before += usize::from(mixture::makes_values(rest));
        matrix
    }
}

/// Keys of the file to be written: the file's, without what says that it is split, and with what says how it is quantized.
fn metadata(
    from: &Metadata,
    choice: &Choice<'_>,
    importance: Option<&Importance>,
) -> Result<Metadata, GgufError> {
    let ours = [keys::SPLIT_NO, keys::SPLIT_COUNT, keys::SPLIT_TENSORS_COUNT];
    let said = [keys::GENERAL_FILE_TYPE, keys::GENERAL_QUANTIZATION_VERSION];
    let changed = choice.base != Base::Keep || choice.recipe.is_some() || choice.chosen.is_some();
    let is_replaced = |key: &str| {
        ours.contains(&key)
            || changed && said.contains(&key)
            || importance.is_some() && key.starts_with(keys::QUANTIZE_IMPORTANCE_PREFIX)
    };
    let mut pairs: Vec<(String, MetaValue)> = from
        .iter()
        .filter(|(key, _)| !is_replaced(key))
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .collect();
    // A file made by a recipe or a budget has no name among the mixtures: then nothing is said.
    let file_type = match choice.base {
        _ if choice.recipe.is_some() || choice.chosen.is_some() => None,
        Base::Keep => None,
        Base::Format(format) => mixture::file_type(format),
        Base::Mixture(mixture) => Some(mixture.file_type),
    };
    pairs.extend(file_type.map(|n| (keys::GENERAL_FILE_TYPE.to_owned(), MetaValue::U32(n))));
    if !pairs.iter().any(|(key, _)| key == keys::GENERAL_QUANTIZATION_VERSION) {
        pairs.push((keys::GENERAL_QUANTIZATION_VERSION.to_owned(), MetaValue::U32(2)));
    }
    if let Some(importance) = importance {
        pairs.extend(importance.about());
    }
    Metadata::from_pairs(from.origin(), pairs)
}
