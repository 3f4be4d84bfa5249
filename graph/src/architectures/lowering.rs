//! A lowering in progress: tensors become weights of the graph, and every one is accounted for.

use super::{LowerError, TensorTable, format_of};
use crate::config::ModelConfig;
use crate::ir::{Graph, LeftOut, ValueId, WeightHome, WeightId, WeightSlice};
use crate::quant::{Format, GgmlType};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What the blocks share.
pub struct Lowering<'a> {
    /// The dimensions.
    pub config: &'a ModelConfig,
    /// The graph so far.
    pub graph: Graph,
    /// Keys and values in the states, by the layer that writes them.
    pub caches: BTreeMap<usize, [ValueId; 2]>,
    /// Which positions an indexer chose, by its layer.
    pub choices: BTreeMap<usize, ValueId>,
    tensors: &'a TensorTable,
    vectors: &'a dyn Fn(&str) -> Option<Vec<f32>>,
    used: BTreeSet<String>,
    weights: BTreeMap<String, WeightId>,
}

/// Whether an architecture has a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It has none: one in the file is refused, as every tensor without a place.
    Never,
    /// Where the file has it.
    Optional,
    /// Always: a file without it is refused.
    Required,
}

/// A shape without the 1s that it begins with. In a file, which has the innermost dimension first, they are at the end,
/// where they change nothing: some writers add them, others leave them out.
fn without_outer_ones(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().take_while(|n| **n == 1).count();
    &shape[ones..]
}

impl<'a> Lowering<'a> {
    /// An empty graph of a model.
    pub(super) fn new(
        config: &'a ModelConfig,
        tensors: &'a TensorTable,
        vectors: &'a dyn Fn(&str) -> Option<Vec<f32>>,
    ) -> Lowering<'a> {
        let mut graph = Graph::new();
        graph.num_layers = config.num_hidden_layers;
        Lowering {
            config,
            graph,
            caches: BTreeMap::new(),
            choices: BTreeMap::new(),
            tensors,
            vectors,
            used: BTreeSet::new(),
            weights: BTreeMap::new(),
        }
    }

    /// The graph, if every tensor has been used or left out by name.
    pub(super) fn finish(self) -> Result<Graph, LowerError> {
        let unused = self.tensors.keys().filter(|name| !self.used.contains(*name));
        let names: Vec<String> = unused.take(4).cloned().collect();
        if !names.is_empty() {
            return Err(LowerError::UnusedTensors { architecture: self.config.architecture.clone(), names });
        }
        Ok(self.graph)
    }

    /// Whether the file has a tensor.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The rows of a matrix in the file.
    #[must_use]
    pub fn rows(&self, name: &str) -> Option<usize> {
        self.tensors.get(name).and_then(|(shape, _)| shape.iter().rev().nth(1).copied())
    }

    /// Whether a tensor is to be read.
    #[must_use]
    pub fn wants(&self, name: &str, presence: Presence) -> bool {
        match presence {
            Presence::Never => false,
            Presence::Optional => self.has(name),
            Presence::Required => true,
        }
    }

    /// Leaves out the tensors whose names begin with `prefix`; `reason` is shown to whoever runs the model. A file
    /// without them has nothing to leave out.
    pub fn leave_out(&mut self, prefix: impl Into<String>, reason: &'static str) {
        let prefix = prefix.into();
        let (mut tensors, mut bytes) = (0, 0);
        let behind = self.tensors.range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix));
        for (name, (shape, ggml_type)) in behind {
            tensors += 1;
            let inner = shape.last().copied().unwrap_or(0);
            let row = ggml_type.format().ok().and_then(|format| format.row_bytes(inner)).unwrap_or(0);
            bytes += row as u64 * shape.iter().rev().skip(1).map(|n| *n as u64).product::<u64>();
            self.used.insert(name.clone());
        }
        if tensors > 0 {
            self.graph.left_out.push(LeftOut { prefix, reason, tensors, bytes });
        }
    }

    /// The format of a tensor with the wanted shape, to which dimensions of 1 outside of it make no difference. Counts it
    /// as used.
    fn used(&mut self, name: &str, wanted: &[usize]) -> Result<Format, LowerError> {
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
        self.used.insert(name.to_owned());
        format_of(name, *ggml_type)
    }

    /// The weight of a tensor with the wanted shape, to which dimensions of 1 outside of it make no difference.
    ///
    /// # Errors
    /// [`LowerError::MissingTensor`], [`LowerError::TensorShape`] or [`LowerError::TensorType`].
    pub fn weight(&mut self, name: &str, wanted: &[usize]) -> Result<WeightId, LowerError> {
        let format = self.used(name, wanted)?;
        if let Some(id) = self.weights.get(name) {
            return Ok(*id);
        }
        let id = self.graph.add_weight(name, wanted.to_vec(), format);
        self.weights.insert(name.to_owned(), id);
        Ok(id)
    }

    /// The weight of a tensor that stands in the file as `stored` and is read as `shape`, of as many rows.
    ///
    /// # Errors
    /// As [`Lowering::weight`].
    pub fn weight_as(
        &mut self,
        name: &str,
        stored: &[usize],
        shape: &[usize],
    ) -> Result<WeightId, LowerError> {
        let format = self.used(name, stored)?;
        if let Some(id) = self.weights.get(name) {
            return Ok(*id);
        }
        let id = self.graph.add_weight(name, shape.to_vec(), format);
        self.weights.insert(name.to_owned(), id);
        Ok(id)
    }

    /// A vector that must be F32: norms and biases.
    ///
    /// # Errors
    /// As [`Lowering::weight`], and [`LowerError::TensorFormat`].
    pub fn vector(&mut self, name: &str, len: usize) -> Result<WeightId, LowerError> {
        self.floats(name, &[len])
    }

    /// As [`Lowering::vector`], of any shape: a convolution's weights.
    ///
    /// # Errors
    /// As [`Lowering::vector`].
    pub fn floats(&mut self, name: &str, wanted: &[usize]) -> Result<WeightId, LowerError> {
        let format = self.used(name, wanted)?;
        is_f32(name, format)?;
        self.weight(name, wanted)
    }

    /// A convolution's weights [channels, kernel] in F32: dimensions of 1 make no difference, wherever in the file they stand.
    ///
    /// # Errors
    /// As [`Lowering::vector`].
    pub fn conv_weight(
        &mut self,
        name: &str,
        channels: usize,
        kernel: usize,
    ) -> Result<WeightId, LowerError> {
        let wanted = [channels, kernel];
        let without_ones =
            |shape: &[usize]| -> Vec<usize> { shape.iter().copied().filter(|n| *n != 1).collect() };
        let found = self.tensors.get(name).map(|(shape, _)| shape.clone());
        let stored =
            found.filter(|found| without_ones(found) == without_ones(&wanted)).unwrap_or(wanted.to_vec());
        is_f32(name, self.used(name, &stored)?)?;
        self.weight_as(name, &stored, &wanted)
    }

    /// A vector in F32 whose tensor has these axes, or one.
    ///
    /// # Errors
    /// As [`Lowering::vector`].
    pub fn flattened(&mut self, name: &str, shape: &[usize]) -> Result<WeightId, LowerError> {
        let len: usize = shape.iter().product();
        let flat = [len];
        let is_flat = self.tensors.get(name).is_some_and(|(found, _)| without_outer_ones(found) == [len]);
        let format = self.used(name, if is_flat { &flat } else { shape })?;
        is_f32(name, format)?;
        Ok(self.graph.add_weight(name, vec![len], format))
    }

    /// A vector as [`Lowering::vector`], where it is wanted.
    ///
    /// # Errors
    /// As [`Lowering::vector`].
    pub fn opt_vector(
        &mut self,
        name: &str,
        len: usize,
        presence: Presence,
    ) -> Result<Option<WeightId>, LowerError> {
        self.opt_floats(name, &[len], presence)
    }

    /// As [`Lowering::opt_vector`], of any shape: a bias of each expert.
    ///
    /// # Errors
    /// As [`Lowering::vector`].
    pub fn opt_floats(
        &mut self,
        name: &str,
        wanted: &[usize],
        presence: Presence,
    ) -> Result<Option<WeightId>, LowerError> {
        if !self.wants(name, presence) {
            return Ok(None);
        }
        self.floats(name, wanted).map(Some)
    }

    /// Vectors that belong to [`Lowering::matrices`]: each a tensor by itself or, where the file has the tensor `fused`,
    /// its elements in this order. `parts` are names and lengths.
    ///
    /// # Errors
    /// As [`Lowering::vector`], and [`LowerError::FusedTwice`].
    pub fn opt_vectors(
        &mut self,
        fused: &str,
        parts: &[(String, usize)],
        presence: Presence,
    ) -> Result<Vec<Option<WeightId>>, LowerError> {
        if presence == Presence::Never || !self.is_fused(fused, parts)? {
            return parts.iter().map(|(name, len)| self.opt_vector(name, *len, presence)).collect();
        }
        let format = self.used(fused, &[parts.iter().map(|(_, len)| len).sum()])?;
        is_f32(fused, format)?;
        let ranges = consecutive(parts.iter().map(|(_, len)| *len));
        Ok(ranges.map(|part| Some(self.graph.add_weight_part(fused, part))).collect())
    }

    /// A table of ids below `below`, 32-bit integers, for ops that read a weight's bits: the graph calls it F32.
    ///
    /// # Errors
    /// As [`Lowering::weight`], [`LowerError::IdsType`] where it is not of I32, [`LowerError::Ids`] for an id that is not below.
    pub fn ids(&mut self, name: &str, wanted: &[usize], below: usize) -> Result<WeightId, LowerError> {
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
        if *ggml_type != GgmlType::I32 {
            return Err(LowerError::IdsType { name: name.to_owned(), found: *ggml_type });
        }
        self.used.insert(name.to_owned());
        let ids = (self.vectors)(name).unwrap_or_default();
        let is_id = |x: &f32| *x >= 0.0 && *x < below as f32;
        if ids.len() != wanted.iter().product::<usize>() || !ids.iter().all(is_id) {
            return Err(LowerError::Ids { name: name.to_owned(), below });
        }
        if let Some(id) = self.weights.get(name) {
            return Ok(*id);
        }
        let id = self.graph.add_weight(name, wanted.to_vec(), Format::F32);
        self.weights.insert(name.to_owned(), id);
        Ok(id)
    }

    /// The values of a vector in F32 that become part of the graph itself.
    ///
    /// # Errors
    /// As [`Lowering::vector`], and [`LowerError::Values`].
    pub fn values(&mut self, name: &str, len: usize) -> Result<Vec<f32>, LowerError> {
        let format = self.used(name, &[len])?;
        is_f32(name, format)?;
        match (self.vectors)(name) {
            Some(values) if values.len() == len && values.iter().all(|x| x.is_finite() && *x > 0.0) => {
                Ok(values)
            }
            _ => Err(LowerError::Values { name: name.to_owned(), wanted: len }),
        }
    }

    /// The first `len` values of a vector in F32 that has so many or `whole`; they become part of the graph itself.
    ///
    /// # Errors
    /// As [`Lowering::values`].
    pub fn leading_values(&mut self, name: &str, len: usize, whole: usize) -> Result<Vec<f32>, LowerError> {
        let found = self.tensors.get(name).and_then(|(shape, _)| shape.last().copied());
        let stored = if found == Some(whole) && whole > len { whole } else { len };
        let mut values = self.values(name, stored)?;
        values.truncate(len);
        Ok(values)
    }

    /// A factor in F32 that becomes part of the graph itself.
    ///
    /// # Errors
    /// As [`Lowering::vector`], and [`LowerError::Values`] where it is not finite.
    pub fn factor(&mut self, name: &str) -> Result<f32, LowerError> {
        let format = self.used(name, &[1])?;
        is_f32(name, format)?;
        match (self.vectors)(name).as_deref() {
            Some([factor]) if factor.is_finite() => Ok(*factor),
            _ => Err(LowerError::Values { name: name.to_owned(), wanted: 1 }),
        }
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
        let is_fused = self.is_fused(fused, parts)?;
        let mut whole = |name: &str, rows| match experts {
            Some(experts) => self.expert_matrix(name, experts, rows, inner),
            None => self.matrix(name, rows, inner),
        };
        if !is_fused {
            return parts.iter().map(|(name, rows)| whole(name, *rows)).collect();
        }
        let all = whole(fused, parts.iter().map(|(_, rows)| rows).sum())?;
        let ranges = consecutive(parts.iter().map(|(_, rows)| *rows));
        Ok(ranges.map(|rows| WeightSlice { rows, ..all.clone() }).collect())
    }

    /// Whether the file has one tensor in place of several.
    fn is_fused(&self, fused: &str, parts: &[(String, usize)]) -> Result<bool, LowerError> {
        let is_fused = self.has(fused);
        match parts.iter().find(|(name, _)| is_fused && self.has(name)) {
            Some((separate, _)) => {
                Err(LowerError::FusedTwice { fused: fused.to_owned(), separate: separate.clone() })
            }
            None => Ok(is_fused),
        }
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

fn is_f32(name: &str, found: Format) -> Result<(), LowerError> {
    match found {
        Format::F32 => Ok(()),
        _ => Err(LowerError::TensorFormat { name: name.to_owned(), found }),
    }
}

/// Ranges of these lengths, each beginning where the one before it ends.
fn consecutive(lengths: impl Iterator<Item = usize>) -> impl Iterator<Item = Range<usize>> {
    lengths.scan(0, |end, len| {
        let begin = *end;
        *end += len;
        Some(begin..*end)
    })
}
