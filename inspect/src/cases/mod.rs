//! Op cases: small graphs of one op (with what it needs around it), random sizes and weights, run on any backend and
//! compared with the reference under the same definition of activations and KV cache.
//!
//! The same cases serve the test suite and `moe-run selftest` on a user's own machine. A case is a function of its op,
//! format and seed: sizes and every attribute are drawn over all that an op may have, so that some backends refuse some
//! cases ([`is_refusal`]). `groups` has the cases of nodes that backends run as one launch.

mod attention;
mod compressed;
pub mod groups;
mod matmul;
mod recurrent;
mod small;

use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{DType, Graph, Op, OpKind, Shape, ValueId, WeightId};
use moe_run_graph::passes::{Launch, LaunchId, Plan, TapSelection};
use moe_run_graph::quant::Format;
use moe_run_graph::synth::{Random, fill};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    Backend, CompileOptions, Executable, HostTensor, Observer, StepInput, StepSequence, StepTokens, TapValue,
    TensorData, ValueAccess, blocks_in_order,
};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// How far a result may be from the reference's under the same definition: both compute from the same rounded activations
/// and cache, and what is left is the order of f32 sums and the last bits of exp, which a softmax over hundreds of
/// positions adds up.
pub const TOLERANCE: f64 = 2e-5;

/// The ops that have cases, by stem: all.
pub const OPS: &[&str] = OpKind::STEMS;

/// Whether an op reads weights of any format: its cases run over all.
#[must_use]
pub fn takes_formats(op: &str) -> bool {
    matches!(op, "embed" | "matmul" | "head_matmul" | "expert_matmul")
}

/// A graph with weights and the steps to run.
pub struct OpCase {
    /// Op, format, sizes and seed.
    pub name: String,
    /// The graph.
    pub graph: Graph,
    /// Its weights.
    pub weights: Arc<HashMap<String, Vec<u8>>>,
    /// Steps in order; the outputs of every one are compared.
    pub steps: Vec<CaseStep>,
    /// Context size that the steps need.
    pub ctx_size: usize,
}

/// One step of a case.
pub struct CaseStep {
    /// The first position.
    pub first_position: u32,
    /// Token ids: T of them.
    pub tokens: Vec<TokenId>,
    /// Rows of logits: R of them.
    pub logits_rows: Vec<u32>,
    /// Boundary inputs.
    pub boundary: Vec<(ValueId, HostTensor)>,
}

/// Gives the boundary inputs before the first launch, and keeps what taps show.
struct Feed<'a> {
    boundary: &'a [(ValueId, HostTensor)],
    taps: &'a mut Vec<HostTensor>,
}

impl Observer for Feed<'_> {
    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        self.taps.push(tap.tensor.to_tensor());
        Ok(())
    }

    fn before_launch(
        &mut self,
        _plan: &Plan,
        launch: &Launch,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        if launch.id == LaunchId(0) {
            for (value, tensor) in self.boundary {
                values.write(*value, tensor)?;
            }
        }
        Ok(())
    }
}

/// The case of an op, a format (for ops that take one) and a seed; `None` for an op without cases.
///
/// # Errors
/// [`BackendError::Graph`] if the case itself is unsound.
pub fn case(op: &str, format: Format, seed: u64) -> Result<Option<OpCase>, BackendError> {
    let Some(kind) = OpKind::parse(op) else { return Ok(None) };
    let mut b = Builder::new(format, &[kind as u64, format.ggml_type().into(), seed]);
    // No op without a case: this match is what an added one does not compile at.
    let (steps, ctx_size) = match kind {
        OpKind::Embed => matmul::embed(&mut b)?,
        OpKind::MatMul => matmul::matmul(&mut b)?,
        OpKind::HeadMatMul => matmul::head_matmul(&mut b)?,
        OpKind::ExpertMatMul => matmul::expert_matmul(&mut b)?,
        OpKind::KvWrite => attention::kv_write(&mut b)?,
        OpKind::Attention => attention::attention(&mut b)?,
        OpKind::AttentionScores => attention::attention_scores(&mut b)?,
        OpKind::AttentionSoftmax => attention::attention_softmax(&mut b)?,
        OpKind::RmsNorm => small::rms_norm(&mut b)?,
        OpKind::LayerNorm => small::layer_norm(&mut b)?,
        OpKind::PositionScale => small::position_scale(&mut b)?,
        OpKind::MulHeads => small::mul_heads(&mut b)?,
        OpKind::Rope => small::rope(&mut b)?,
        OpKind::Router => small::router(&mut b)?,
        OpKind::IndexScores => attention::index_scores(&mut b)?,
        OpKind::IndexSelect => attention::index_select(&mut b)?,
        OpKind::GivenExperts => small::given_experts(&mut b)?,
        OpKind::GatedAct => small::gated_act(&mut b)?,
        OpKind::ExpertCombine => small::expert_combine(&mut b)?,
        OpKind::HyperGates => compressed::hyper_gates(&mut b)?,
        OpKind::HyperConnect => compressed::hyper_connect(&mut b)?,
        OpKind::Compress => compressed::compress(&mut b)?,
        OpKind::CompressedAttention => compressed::compressed_attention(&mut b)?,
        OpKind::CausalConv => recurrent::causal_conv(&mut b)?,
        OpKind::DeltaGates => recurrent::delta_gates(&mut b)?,
        OpKind::DeltaRule => recurrent::delta_rule(&mut b)?,
        OpKind::SsmScan => recurrent::ssm_scan(&mut b)?,
        OpKind::Add => small::elementwise(&mut b, Op::Add)?,
        OpKind::Mul => small::elementwise(&mut b, Op::Mul)?,
        OpKind::Pointwise => small::pointwise(&mut b)?,
        OpKind::Concat => small::concat(&mut b)?,
        OpKind::Slice => small::slice(&mut b)?,
        OpKind::GetRows => small::get_rows(&mut b)?,
        OpKind::Tap => small::tap(&mut b)?,
    };
    let format = if takes_formats(op) { format!(" {}", format.name()) } else { String::new() };
    Ok(Some(b.case(&format!("{op}{format}"), seed, steps, ctx_size)))
}

/// Whether an error of compiling a case says that the backend does not run it, by op, attribute or option: what a case that
/// was drawn at random may meet.
#[must_use]
pub fn is_refusal(error: &BackendError) -> bool {
    matches!(error, BackendError::Unsupported { .. } | BackendError::Option { .. })
}

/// A backend's executable for a case: sized for its steps.
///
/// # Errors
/// What compiling reports.
pub fn compile(
    case: &OpCase,
    backend: &dyn Backend,
    options: &CompileOptions,
) -> Result<Box<dyn Executable>, BackendError> {
    let max = |f: fn(&CaseStep) -> usize| case.steps.iter().map(f).max().unwrap_or(1).max(1);
    let options = CompileOptions {
        ctx_size: case.ctx_size,
        micro_batch: Some(max(|s| s.tokens.len())),
        max_logits_rows: max(|s| s.logits_rows.len()),
        taps: TapSelection::All,
        ..options.clone()
    };
    backend.compile(&case.graph, case.weights.clone(), &options)
}

/// Runs a case and returns the graph's outputs, and what its taps show, of every step.
///
/// # Errors
/// What the backend reports.
pub fn run(
    case: &OpCase,
    backend: &dyn Backend,
    options: &CompileOptions,
) -> Result<Vec<HostTensor>, BackendError> {
    run_steps(case, compile(case, backend, options)?.as_mut())
}

/// Runs the steps of a case on its executable.
///
/// # Errors
/// What the steps report.
pub fn run_steps(case: &OpCase, executable: &mut dyn Executable) -> Result<Vec<HostTensor>, BackendError> {
    let mut state = executable.new_state()?;
    let blocks = blocks_in_order(state.capacity_tokens());
    let mut outputs = Vec::new();
    for step in &case.steps {
        let positions: Vec<u32> = (step.first_position..).take(step.tokens.len()).collect();
        let input = StepInput {
            tokens: StepTokens::Host(&step.tokens),
            positions: &positions,
            sequence: &vec![0; step.tokens.len()],
            kv_slots: &positions,
            sequences: &[StepSequence { blocks: &blocks, place: 0 }],
            logits_rows: &step.logits_rows,
        };
        let mut taps = Vec::new();
        let mut feed = Feed { boundary: &step.boundary, taps: &mut taps };
        executable.step(state.as_mut(), &input, Some(&mut feed))?;
        outputs.append(&mut taps);
        for i in 0..case.graph.outputs.len() {
            outputs.push(executable.output(i)?);
        }
    }
    Ok(outputs)
}

/// The options under which the reference computes what an executable of `info` computes.
#[must_use]
pub fn same_definition(info: &moe_run_runtime::ExecutableInfo) -> CompileOptions {
    CompileOptions {
        activations: Some(info.activations),
        q8_super_block: info.q8_super_block,
        kv_type: info.kv_type,
        ..CompileOptions::default()
    }
}

/// The distance of two results: relative L2 of floats (infinite where either is not finite), 0 or infinity for ids.
#[must_use]
pub fn distance(found: &HostTensor, wanted: &HostTensor) -> f64 {
    if found.shape != wanted.shape {
        return f64::INFINITY;
    }
    match (&found.data, &wanted.data) {
        (TensorData::U32(a), TensorData::U32(b)) if a == b => 0.0,
        (TensorData::F32(a), TensorData::F32(b)) => {
            if a.iter().chain(b).any(|x| !x.is_finite()) {
                return f64::INFINITY;
            }
            let square = |x: f64| x * x;
            let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
            let norm: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
            if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
        }
        _ => f64::INFINITY,
    }
}

/// What a product's result is typically as large as, √in · rms(w) · rms(x); 0 for other ops. A result of one value or a few may
/// cancel to nearly nothing, while the rounding of its f32 sums stays that of its terms: one such gives 1.4e-4, off by 1.6e-8,
/// where 0.4 is typical.
#[must_use]
pub fn typical(case: &OpCase) -> f64 {
    let Some(weight) = case.graph.weights.iter().find(|w| w.name == "weight") else { return 0.0 };
    let x = case.steps.first().and_then(|step| step.boundary.first());
    let (Some((_, x)), Some(bytes)) = (x, case.weights.get("weight")) else { return 0.0 };
    let columns = weight.shape.last().copied().unwrap_or(1);
    let Some(row_bytes) = weight.format.row_bytes(columns) else { return 0.0 };
    let rms = |values: &[f32]| {
        (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    };
    let mut values = vec![0.0; weight.shape.iter().product()];
    for (row, bytes) in values.chunks_exact_mut(columns).zip(bytes.chunks_exact(row_bytes)) {
        weight.format.decode_row(bytes, row);
    }
    (columns as f64).sqrt() * rms(&values) * rms(&x.data.to_f32())
}

/// [`distance`], against no less than what results are [`typical`]ly as large as.
#[must_use]
pub fn distance_of_typical(found: &HostTensor, wanted: &HostTensor, typical: f64) -> f64 {
    let relative = distance(found, wanted);
    let norm = wanted.data.to_f32().iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let least = typical * (wanted.data.len() as f64).sqrt();
    if relative > 0.0 && norm < least { relative * norm / least } else { relative }
}

/// What the cases build with.
struct Builder {
    graph: Graph,
    weights: HashMap<String, Vec<u8>>,
    random: Random,
    format: Format,
    boundary: Vec<ValueId>,
    /// Of [`Builder::boundary`] those that are 0 or not.
    masks: Vec<ValueId>,
    parameters: String,
}

impl Builder {
    /// An empty graph, and random numbers of its own.
    fn new(format: Format, seeds: &[u64]) -> Builder {
        let mut all = vec![0x6d6f_652d_7275_6e00];
        all.extend_from_slice(seeds);
        Builder {
            graph: Graph::new(),
            weights: HashMap::new(),
            random: Random::new(&all),
            format,
            boundary: Vec::new(),
            masks: Vec::new(),
            parameters: String::new(),
        }
    }

    /// The finished case.
    fn case(self, what: &str, seed: u64, steps: Vec<CaseStep>, ctx_size: usize) -> OpCase {
        OpCase {
            name: format!("{what}{} seed {seed}", self.parameters),
            graph: self.graph,
            weights: Arc::new(self.weights),
            steps,
            ctx_size,
        }
    }

    /// Once in so many times.
    fn one_in(&mut self, times: usize) -> bool {
        self.between(1, times) == 1
    }

    /// One of the choices, at random.
    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[(self.random.next_u64() % choices.len() as u64) as usize]
    }

    /// A number in the range, at random.
    fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.random.next_u64() % (high - low + 1) as u64) as usize
    }

    /// Token counts that meet tile edges: one token, a few, around 8, 32 and 256.
    fn tokens(&mut self) -> usize {
        self.pick(&[1, 1, 2, 3, 7, 8, 9, 16, 31, 33, 64, 257])
    }

    /// Rows of elements that the case's format can hold: of plain floats any number, else whole blocks.
    fn inner(&mut self) -> usize {
        match self.format.block_elems() {
            32 => self.pick(&[32, 96, 160, 256, 512, 768, 1024]),
            64 => self.pick(&[64, 192, 256, 512, 768, 1024]),
            128 => self.pick(&[128, 384, 512, 768, 1024]),
            256 => self.pick(&[256, 512, 768, 1024]),
            _ => self.pick(&[1, 7, 36, 50, 72, 100, 256, 512, 768]),
        }
    }

    /// A part of `0..all`, now and then; else all of it.
    fn part(&mut self, all: usize) -> Range<usize> {
        if all > 3 && self.one_in(4) {
            let start = self.between(1, all / 2);
            return start..self.between(start + 1, all - 1);
        }
        0..all
    }

    /// Ids [tokens, count] below `all`, distinct for each token.
    fn chosen(&mut self, tokens: usize, count: usize, all: usize) -> HostTensor {
        let mut chosen = Vec::with_capacity(tokens * count);
        for _ in 0..tokens {
            let mut ids: Vec<u32> = (0..all as u32).collect();
            for i in 0..count {
                let j = self.between(i, all - 1);
                ids.swap(i, j);
            }
            chosen.extend_from_slice(&ids[..count]);
        }
        HostTensor::u32(vec![tokens, count], chosen)
    }

    /// A vector, now and then.
    fn sometimes(&mut self, name: &str, shape: &[usize]) -> Option<WeightId> {
        self.one_in(3).then(|| self.vector(name, shape, 0.0))
    }

    /// Remembers a size for the case's name.
    fn note(&mut self, name: &str, value: impl std::fmt::Display) {
        self.parameters.push_str(&format!(" {name}={value}"));
    }

    /// Random floats in −`bound`..`bound`.
    fn floats(&mut self, n: usize, bound: f32) -> Vec<f32> {
        (0..n).map(|_| self.random.signed_unit() * bound).collect()
    }

    /// A boundary input.
    fn boundary(&mut self, shape: Shape, dtype: DType) -> ValueId {
        let id = self.graph.add_boundary(shape, dtype);
        self.boundary.push(id);
        id
    }

    /// A boundary input that says of each position whether it is seen; of a token's own it always does.
    fn mask(&mut self, shape: Shape) -> ValueId {
        let id = self.boundary(shape, DType::F32);
        self.masks.push(id);
        id
    }

    /// An F32 weight of random values around `centre`.
    fn vector(&mut self, name: &str, shape: &[usize], centre: f32) -> WeightId {
        let values = self.floats(shape.iter().product(), 0.5);
        let bytes = values.iter().flat_map(|v| (centre + v).to_le_bytes()).collect();
        self.weights.insert(name.to_owned(), bytes);
        self.graph.add_weight(name, shape.to_vec(), Format::F32)
    }

    /// A table of ids below `below`: a weight in F32 whose bits they are.
    fn table(&mut self, name: &str, shape: &[usize], below: usize) -> WeightId {
        let count: usize = shape.iter().product();
        let ids = (0..count).flat_map(|_| (self.between(0, below - 1) as u32).to_le_bytes()).collect();
        self.weights.insert(name.to_owned(), ids);
        self.graph.add_weight(name, shape.to_vec(), Format::F32)
    }

    /// A random matrix of the case's format. Sub-block scales and minima are random and unequal, so that a kernel that
    /// mistakes one for the other is seen.
    fn matrix(&mut self, name: &str, shape: &[usize]) -> WeightId {
        let format = self.format;
        let blocks = shape.iter().product::<usize>() / format.block_elems();
        let mut bytes = vec![0; blocks * format.block_bytes()];
        fill(format, 0.05, &mut self.random, &mut bytes);
        let packed_scales = match format {
            Format::Q4K | Format::Q5K => 4..16,
            Format::Q2K => 0..16,
            _ => 0..0,
        };
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            self.random.bytes(&mut block[packed_scales.clone()]);
        }
        self.weights.insert(name.to_owned(), bytes);
        self.graph.add_weight(name, shape.to_vec(), format)
    }

    /// A step of `tokens` tokens from `first_position` on, with random values of every boundary input.
    fn step(&mut self, first_position: u32, tokens: usize, rows: &[u32], bound: f32) -> CaseStep {
        let sizes = moe_run_graph::ir::StepSizes {
            tokens,
            logits_rows: rows.len(),
            cached: first_position as usize + tokens,
        };
        let mut boundary = Vec::new();
        for id in self.boundary.clone() {
            let shape = self.graph.value(id).shape.resolve(sizes);
            let mut data = self.floats(shape.iter().product(), bound);
            if self.masks.contains(&id) {
                data.iter_mut().for_each(|x| *x = f32::from(*x > 0.0));
                for (t, row) in data.chunks_exact_mut(sizes.cached).enumerate() {
                    row[first_position as usize + t] = 1.0;
                }
            }
            boundary.push((id, HostTensor::f32(shape, data)));
        }
        CaseStep { first_position, tokens: vec![TokenId(0); tokens], logits_rows: rows.to_vec(), boundary }
    }
}
