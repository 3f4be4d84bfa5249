//! The importance of columns, from the production pass's taps: what each matrix is multiplied by, squared and summed.
//!
//! Input: a running session whose executable has the taps that [`ImportanceSink::taps`] names. Output:
//! [`TensorImportance`] of every matrix, of each expert where there are experts. What matters is which value a product reads,
//! and a tap shows that value; a value without a tap is looked at behind the launch that makes it, where the plan stores it.
//! Deliberately absent: lookups in the embedding's table, whose rows are multiplied by nothing, and products of a head with a
//! transposed matrix, where an element of the input meets a row of the matrix and not a column.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use moe_run_graph::Model;
use moe_run_graph::ir::{Op, Stage, ValueId};
use moe_run_graph::passes::{Launch, Plan, TapSelection};
use moe_run_graph::quantize::TensorImportance;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{HostTensor, Observer, TapValue, TensorData, ValueAccess};

/// A product of a matrix and a value.
#[derive(Debug, Clone)]
struct Product {
    tensor: String,
    /// `[T, in]`, `[T, K, in]` or `[T, H·in]`.
    input: ValueId,
    /// `[T, K]`, of experts.
    ids: Option<ValueId>,
    /// The first expert or head that it reads.
    first: usize,
    /// Heads side by side in the input, each with its own matrix; 1 of other products.
    heads: usize,
    /// Experts or heads of the tensor.
    matrices: usize,
    cols: usize,
}

/// Sums in f64 of one tensor.
#[derive(Debug, Clone)]
struct Sums {
    sums: Vec<f64>,
    counts: Vec<u64>,
}

/// Collects what products read.
#[derive(Debug)]
pub struct ImportanceSink {
    products: Vec<Product>,
    /// The value that a tap shows alone.
    tapped: HashMap<(Stage, Option<usize>), ValueId>,
    /// Values without a tap of their own.
    untapped: HashSet<ValueId>,
    /// Values of the step under way that some product still waits with.
    held: HashMap<ValueId, HostTensor>,
    /// Products that the step under way has given.
    done: Vec<bool>,
    sums: BTreeMap<String, Sums>,
}

impl ImportanceSink {
    /// For the products of a model.
    #[must_use]
    pub fn new(model: &Model) -> ImportanceSink {
        let graph = &model.graph;
        let mut products: Vec<Product> = Vec::new();
        let mut seen = HashSet::new();
        for node in &graph.nodes {
            let (slice, ids, heads) = match &node.op {
                Op::MatMul { weight, .. } => (weight, None, 1),
                Op::ExpertMatMul { weight, .. } => (weight, node.inputs.get(1).copied(), 1),
                Op::HeadMatMul { weight, transposed: false } => {
                    (weight, None, weight.experts.as_ref().map_or(1, ExactSizeIterator::len))
                }
                // Of the embedding, rows are looked up; of a transposed head, an element of the input meets a row.
                Op::Embed { .. } | Op::HeadMatMul { transposed: true, .. } => continue,
                // No products with a matrix of the file.
                Op::RmsNorm { .. }
                | Op::LayerNorm { .. }
                | Op::Rope { .. }
                | Op::PositionScale(_)
                | Op::KvWrite { .. }
                | Op::Attention(_)
                | Op::AttentionScores(_)
                | Op::AttentionSoftmax(_)
                | Op::IndexScores(_)
                | Op::IndexSelect { .. }
                | Op::Router(_)
                | Op::GivenExperts(_)
                | Op::GatedAct { .. }
                | Op::ExpertCombine
                | Op::CausalConv(_)
                | Op::DeltaGates { .. }
                | Op::DeltaRule(_)
                | Op::SsmScan(_)
                | Op::HyperGates(_)
                | Op::HyperConnect { .. }
                | Op::Compress(_)
                | Op::CompressedAttention(_)
                | Op::Add
                | Op::Mul
                | Op::MulHeads
                | Op::Pointwise { .. }
                | Op::Concat { .. }
                | Op::Slice { .. }
                | Op::GetRows
                | Op::Tap { .. } => continue,
            };
            let decl = graph.weight(slice.tensor);
            // Parts of one tensor read one value: it counts once.
            if !seen.insert((decl.name.clone(), node.inputs[0], slice.experts.clone())) {
                continue;
            }
            // A tensor that the file has as one matrix, and the graph as one for each head, is one here too.
            let in_file = model.file.tensor(&decl.name).map_or(&decl.shape, |tensor| &tensor.shape);
            products.push(Product {
                tensor: decl.name.clone(),
                input: node.inputs[0],
                ids,
                first: slice.experts.as_ref().map_or(0, |experts| experts.start),
                heads,
                matrices: in_file.iter().rev().skip(2).product(),
                cols: decl.shape.last().copied().unwrap_or(1),
            });
        }
        let wanted: HashSet<ValueId> =
            products.iter().flat_map(|p| p.ids.into_iter().chain([p.input])).collect();
        let mut tapped = HashMap::new();
        for (node, stage) in graph.taps() {
            if let [value] = node.inputs.as_slice()
                && wanted.contains(value)
                && !tapped.values().any(|known| known == value)
            {
                tapped.insert((stage, node.layer.map(|l| l.index())), *value);
            }
        }
        let shown: HashSet<ValueId> = tapped.values().copied().collect();
        let untapped = wanted.difference(&shown).copied().collect();
        let done = vec![false; products.len()];
        ImportanceSink { products, tapped, untapped, held: HashMap::new(), done, sums: BTreeMap::new() }
    }

    /// The taps that the executable must have.
    #[must_use]
    pub fn taps(&self) -> TapSelection {
        TapSelection::Some(self.tapped.keys().copied().collect())
    }

    /// Tensors of products whose input was never seen: no tap shows it, and it never leaves a launch.
    #[must_use]
    pub fn unknown(&self) -> BTreeSet<&str> {
        let names = self.products.iter().map(|p| p.tensor.as_str());
        names.filter(|name| !self.sums.contains_key(*name)).collect()
    }

    /// What was found.
    #[must_use]
    pub fn finish(self) -> BTreeMap<String, TensorImportance> {
        let narrow = |sums: Sums| TensorImportance {
            sums: sums.sums.into_iter().map(|sum| sum as f32).collect(),
            counts: sums.counts.into_iter().map(|count| count as f32).collect(),
        };
        self.sums.into_iter().map(|(name, sums)| (name, narrow(sums))).collect()
    }

    /// A step begins.
    fn begin(&mut self) {
        self.held.clear();
        self.done.fill(false);
    }

    /// Takes a value, and gives every product that now has all that it reads.
    fn take(&mut self, value: ValueId, tensor: HostTensor) -> Result<(), BackendError> {
        self.held.insert(value, tensor);
        for i in 0..self.products.len() {
            let product = &self.products[i];
            let is_near = product.input == value || product.ids == Some(value);
            if self.done[i] || !is_near || product.ids.is_some_and(|ids| !self.held.contains_key(&ids)) {
                continue;
            }
            let Some(input) = self.held.get(&product.input) else { continue };
            let ids = product.ids.and_then(|ids| self.held.get(&ids));
            let sums = self.sums.entry(product.tensor.clone()).or_insert_with(|| Sums {
                sums: vec![0.0; product.matrices * product.cols],
                counts: vec![0; product.matrices],
            });
            add(product, input, ids, sums)?;
            self.done[i] = true;
        }
        let (products, done) = (&self.products, &self.done);
        self.held.retain(|value, _| {
            products.iter().zip(done).any(|(p, done)| !done && (p.input == *value || p.ids == Some(*value)))
        });
        Ok(())
    }
}

/// Adds the squares of a product's input.
fn add(
    product: &Product,
    input: &HostTensor,
    ids: Option<&HostTensor>,
    sums: &mut Sums,
) -> Result<(), BackendError> {
    let odd = || BackendError::Input(format!("{}: its input is not of its shape", product.tensor));
    let TensorData::F32(x) = &input.data else { return Err(odd()) };
    let cols = product.cols;
    if x.len() % cols != 0 {
        return Err(odd());
    }
    let mut row = |matrix: usize, x: &[f32]| {
        let matrix = if product.matrices == 1 { 0 } else { product.first + matrix };
        let sums_of = sums.sums.get_mut(matrix * cols..(matrix + 1) * cols).ok_or_else(odd)?;
        sums_of.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
        sums.counts[matrix] += 1;
        Ok(())
    };
    let rows = x.chunks_exact(cols);
    match ids.map(|ids| &ids.data) {
        None => rows.enumerate().try_for_each(|(i, x)| row(i % product.heads, x)),
        Some(TensorData::U32(ids)) => {
            // Of gate_proj a token's one row meets each of its experts, of down_proj each has its own.
            let each = ids.len() * cols / x.len().max(1);
            ids.iter().enumerate().try_for_each(|(i, expert)| {
                let at = i / each.max(1) * cols;
                row(*expert as usize, x.get(at..at + cols).ok_or_else(odd)?)
            })
        }
        Some(TensorData::F32(_)) => Err(odd()),
    }
}

impl Observer for ImportanceSink {
    fn before_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        _values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        if plan.launches.first().is_some_and(|first| first.id == launch.id) {
            self.begin();
        }
        Ok(())
    }

    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        _elapsed: std::time::Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        if self.untapped.is_empty() {
            return Ok(());
        }
        let made = plan.launch_nodes(launch).flat_map(|node| node.outputs.iter().copied());
        let made: Vec<ValueId> = made.filter(|v| self.untapped.contains(v) && plan.is_stored(*v)).collect();
        made.into_iter().try_for_each(|value| {
            let tensor = values.read(value)?;
            self.take(value, tensor)
        })
    }

    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        match self.tapped.get(&(tap.stage, tap.layer)) {
            Some(value) => self.take(*value, tap.tensor.to_tensor()),
            None => Ok(()),
        }
    }
}
