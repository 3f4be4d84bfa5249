//! Weights apart from plans: loaded once a device, read by any number of executables.
//!
//! Input: tensors of a [`WeightSource`], as a graph declares them. Output: [`Weights`], which compile that graph, or any
//! other that reads the same tensors in the same way, and a [`WeightTable`] that says whether a graph does.

use crate::error::BackendError;
use crate::executable::Executable;
use crate::options::CompileOptions;
use moe_run_graph::ir::{Graph, WeightDecl, WeightId};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Where weights come from: a mapped GGUF file, or memory in tests.
pub trait WeightSource: Send + Sync {
    /// The bytes of a tensor, rows in order; `None` if there is no such tensor.
    fn bytes(&self, name: &str) -> Option<&[u8]>;

    /// The bytes of a graph's weight: its tensor's, or the part of them that it is.
    fn weight(&self, decl: &WeightDecl) -> Option<&[u8]> {
        self.bytes(&decl.name).and_then(|tensor| decl.bytes_in(tensor))
    }
}

impl WeightSource for moe_run_graph::gguf::GgufFile {
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.tensor(name).map(|t| self.data(t))
    }
}

impl WeightSource for HashMap<String, Vec<u8>> {
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.get(name).map(Vec::as_slice)
    }
}

/// Checks that every weight of a graph is there with the bytes that its shape and format say.
///
/// # Errors
/// [`BackendError::Weight`] naming the tensor.
pub fn check_weights(graph: &Graph, source: &dyn WeightSource) -> Result<(), BackendError> {
    for decl in &graph.weights {
        let cols = decl.shape.last().copied().unwrap_or(0);
        let rows: usize = decl.shape[..decl.shape.len().saturating_sub(1)].iter().product();
        let wanted_bytes =
            decl.format.row_bytes(cols).and_then(|b| b.checked_mul(rows)).unwrap_or(usize::MAX);
        let found_bytes = source.weight(decl).map_or(0, <[u8]>::len);
        if found_bytes != wanted_bytes {
            return Err(BackendError::Weight { name: decl.name.clone(), wanted_bytes, found_bytes });
        }
    }
    Ok(())
}

/// Bytes of a graph's weights as their source holds them.
#[must_use]
pub fn mapped_bytes(graph: &Graph, source: &dyn WeightSource) -> u64 {
    graph.weights.iter().map(|decl| source.weight(decl).map_or(0, <[u8]>::len) as u64).sum()
}

/// Weights that a backend has loaded: immutable, and shared by all executables that are compiled from them. Each of those
/// keeps what it reads, whether this is dropped or not.
pub trait Weights: Send + Sync {
    /// Memory that they take beyond the mapped file.
    fn size_bytes(&self) -> u64;

    /// Compiles a graph (a whole model or a segment) that reads these weights. The option `device` is not looked at: the
    /// weights lie where they were loaded.
    ///
    /// # Errors
    /// [`BackendError`] for a graph with other weights ([`BackendError::NotLoaded`]), for what the backend lacks, and for
    /// memory, of which these weights have taken their part already.
    fn compile(&self, graph: &Graph, options: &CompileOptions) -> Result<Box<dyn Executable>, BackendError>;
}

/// How a weight lies on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// In its format: some op multiplies with it or looks rows up in it.
    Matrix,
    /// As f32.
    Vector,
}

impl Kept {
    fn text(self) -> &'static str {
        match self {
            Kept::Matrix => "a matrix",
            Kept::Vector => "a vector",
        }
    }
}

/// What was loaded, by name, as a graph declared it.
#[derive(Debug)]
pub struct WeightTable {
    decls: Vec<WeightDecl>,
    matrices: HashSet<WeightId>,
    /// By name, and the part of the tensor that it is.
    by_name: HashMap<(String, Option<Range<usize>>), WeightId>,
}

impl WeightTable {
    /// The weights of a graph.
    #[must_use]
    pub fn new(graph: &Graph) -> WeightTable {
        let by_name = graph.weights.iter().map(|decl| (key(decl), decl.id)).collect();
        WeightTable { decls: graph.weights.clone(), matrices: matrices(graph), by_name }
    }

    /// The weights in the order of their ids.
    #[must_use]
    pub fn decls(&self) -> &[WeightDecl] {
        &self.decls
    }

    /// Whether a weight is kept in its format, as a matrix; the others are vectors of f32.
    #[must_use]
    pub fn is_matrix(&self, id: WeightId) -> bool {
        self.matrices.contains(&id)
    }

    /// For each weight of a graph the loaded one that it is.
    ///
    /// # Errors
    /// [`BackendError::NotLoaded`] for the first that is not there, or with another shape, format or use.
    pub fn find(&self, graph: &Graph) -> Result<Vec<WeightId>, BackendError> {
        let (matrices, read) = (matrices(graph), read(graph));
        let find = |decl: &WeightDecl| {
            let kept = if matrices.contains(&decl.id) { Kept::Matrix } else { Kept::Vector };
            let not_loaded = |found: String| BackendError::NotLoaded {
                name: decl.name.clone(),
                wanted: shown(decl, kept),
                found,
            };
            let id = self.by_name.get(&key(decl)).ok_or_else(|| not_loaded("no such tensor".into()))?;
            let loaded = &self.decls[id.index()];
            let loaded_kept = if self.is_matrix(*id) { Kept::Matrix } else { Kept::Vector };
            // What no op of this graph reads may lie in any way.
            let as_wanted = loaded_kept == kept || !read.contains(&decl.id);
            let is_same = (&loaded.shape, loaded.format) == (&decl.shape, decl.format) && as_wanted;
            is_same.then_some(*id).ok_or_else(|| not_loaded(shown(loaded, loaded_kept)))
        };
        graph.weights.iter().map(find).collect()
    }
}

/// What a weight is found by.
fn key(decl: &WeightDecl) -> (String, Option<Range<usize>>) {
    (decl.name.clone(), decl.part.clone())
}

/// `Q4_K [64, 128], a matrix`.
fn shown(decl: &WeightDecl, kept: Kept) -> String {
    format!("{} {:?}, {}", decl.format.name(), decl.shape, kept.text())
}

/// Weights that an op multiplies with or looks rows up in; the others are vectors.
fn matrices(graph: &Graph) -> HashSet<WeightId> {
    graph.nodes.iter().filter_map(|n| n.op.weight_slice()).map(|slice| slice.tensor).collect()
}

/// Weights that some op reads.
fn read(graph: &Graph) -> HashSet<WeightId> {
    graph.nodes.iter().flat_map(|n| n.op.weights()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_run_graph::ir::{DType, Dim, Op, Shape, WeightHome, WeightSlice};
    use moe_run_graph::quant::Format;

    /// A graph that multiplies with `matrix` and norms with `vector`, its weights in the order of `names`.
    fn graph(names: &[&'static str], format: Format) -> Graph {
        let mut graph = Graph::new();
        let x = graph.add_boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(256)]), DType::F32);
        for name in names {
            let is_matrix = name.starts_with("matrix");
            let shape = if is_matrix { vec![32, 256] } else { vec![256] };
            let tensor = graph.add_weight(*name, shape, if is_matrix { format } else { Format::F32 });
            let weight = WeightSlice { tensor, rows: 0..32, experts: None, home: WeightHome::Device };
            let op = match is_matrix {
                true => Op::MatMul { weight, bias: None, scale: None },
                false => Op::RmsNorm { weight: Some(tensor), eps: 1e-6, heads: 1 },
            };
            graph.outputs = graph.push(None, name, op, &[x]).unwrap();
        }
        graph
    }

    #[test]
    fn weights_are_found_by_name_in_any_order() {
        let table = WeightTable::new(&graph(&["matrix", "vector", "other"], Format::Q4K));
        let found = table.find(&graph(&["vector", "matrix"], Format::Q4K)).unwrap();
        assert_eq!(found, [WeightId(1), WeightId(0)]);
        assert!(table.is_matrix(found[1]) && !table.is_matrix(found[0]));
        assert_eq!(table.decls().len(), 3);
    }

    #[test]
    fn other_weights_are_refused_with_what_is_there() {
        let table = WeightTable::new(&graph(&["matrix", "vector"], Format::Q4K));
        let refused = |graph: &Graph| table.find(graph).unwrap_err().to_string();
        let text = refused(&graph(&["matrix", "vector", "third"], Format::Q4K));
        assert!(text.contains("third") && text.contains("no such tensor"), "{text}");
        let text = refused(&graph(&["matrix"], Format::Q6K));
        assert!(text.contains("Q6_K [32, 256]") && text.contains("Q4_K [32, 256]"), "{text}");
        // Declared alike, and read as a vector here.
        let mut as_vector = graph(&["matrix"], Format::Q4K);
        as_vector.nodes[0].op = Op::RmsNorm { weight: Some(WeightId(0)), eps: 1e-6, heads: 1 };
        let text = refused(&as_vector);
        assert!(text.contains("a vector") && text.contains("a matrix"), "{text}");
        // Nobody reads it: it may lie in any way.
        as_vector.nodes.clear();
        assert_eq!(table.find(&as_vector).unwrap(), [WeightId(0)]);
    }
}
