//! The living definition: a scalar interpreter of the IR, one short function an op, slow and obviously right.
//!
//! Values are f32. Norms, products of floats, the router and the experts' sum are summed in f64; products of 8-bit
//! activations, attention and SiLU are defined to the bit (`matmul`, `attention`, `moe_run_runtime::exp`), which the CPU backend
//! meets. Every node is a launch of its own. It implements each rounding that a backend may use
//! (activation profiles, KV types), so that any backend can be compared with the same definition.

mod add;
pub mod attention;
mod attention_scores;
mod attention_softmax;
mod causal_conv;
mod compress;
mod compressed_attention;
mod concat;
mod delta_gates;
mod delta_rule;
mod embed;
mod expert_combine;
mod expert_matmul;
mod gated_act;
mod get_rows;
mod given_experts;
mod head_matmul;
mod hyper_connect;
pub mod hyper_gates;
mod index_scores;
mod index_select;
mod interpret;
mod kv_write;
mod layer_norm;
pub mod matmul;
mod mul;
mod mul_heads;
mod pointwise;
mod position_scale;
mod rms_norm;
mod rope;
mod router;
mod slice;
mod ssm_scan;

use interpret::Interpreter;
use moe_run_graph::ir::{
    ActivationFn, AttentionAttrs, CausalConvAttrs, CompressAttrs, CompressedAttentionAttrs, DType, DecayOf,
    DeltaRuleAttrs, GateKind, GivenExpertsAttrs, Graph, HeadMap, HyperGatesAttrs, IndexScoresAttrs,
    LaunchPattern, Lifetime, Node, Op, PointwiseFn, PositionScaleAttrs, RopePairing, RouterAttrs,
    SsmScanAttrs, StateId, StepSizes, ValueId, WeightHome, WeightSlice,
};
use moe_run_graph::passes::{Launch, Plan, PlanOptions, none_alone, plan};
use moe_run_graph::quant::{ActBlock, ActProfile};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    Activations, Backend, CompileOptions, DeviceInfo, DeviceKind, Executable, ExecutableInfo, HostTensor,
    KvType, MICRO_BATCH, MemoryNeed, PoolSize, Ring, Rings, State, TensorData, WeightSource, WeightTable,
    Weights, check_kv_rows, check_step_operands, check_weights, mapped_bytes,
};
use moe_run_runtime::host_memory::{check_kv_cache, host_memory};
use moe_run_runtime::runner::{Recorder, Runner, Step};
use std::any::Any;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The reference backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference;

/// Its name.
pub const NAME: &str = "reference";

/// Its one device.
const DEVICE: &str = "scalar interpreter";

/// Each of the functions is defined here.
fn any_activation(activation: ActivationFn) {
    match activation {
        ActivationFn::Silu
        | ActivationFn::ClampedSwiglu { alpha: _, limit: _ }
        | ActivationFn::GeluTanh
        | ActivationFn::Sigmoid
        | ActivationFn::Relu
        | ActivationFn::Softplus
        | ActivationFn::LimitedSwiglu { limit: _ }
        | ActivationFn::BoundedSwiglu { limit: _ } => {}
    }
}

impl Backend for Reference {
    fn name(&self) -> &'static str {
        NAME
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        Ok(vec![DeviceInfo {
            backend: NAME,
            index: 0,
            name: DEVICE.into(),
            kind: DeviceKind::Cpu,
            details: Vec::new(),
            memory_bytes: None,
        }])
    }

    fn patterns(&self, _tokens: usize, _options: &CompileOptions) -> Vec<LaunchPattern> {
        Vec::new()
    }

    fn q8_super_blocks(&self) -> &'static [ActBlock] {
        &[ActBlock::X32, ActBlock::X256]
    }

    fn has_reference_bits(&self) -> bool {
        true
    }

    fn maps_weights(&self) -> bool {
        true
    }

    fn profile(&self, options: &CompileOptions) -> ActProfile {
        options.profile(Activations::F32, ActBlock::X32)
    }

    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), BackendError> {
        // Every attribute, told one by one: an op or an attribute that is added does not compile until it is defined here.
        match &node.op {
            Op::Embed { table, scale: _ } => {
                let WeightSlice { tensor: _, rows: _, experts: _, home: WeightHome::Device } = table;
            }
            Op::MatMul { weight, bias: _, scale: _ }
            | Op::HeadMatMul { weight, transposed: _ }
            | Op::ExpertMatMul { weight, bias: _ } => {
                let WeightSlice { tensor: _, rows: _, experts: _, home: WeightHome::Device } = weight;
            }
            Op::RmsNorm { weight: _, eps: _, heads: _ } => {}
            Op::LayerNorm { weight: _, bias: _, eps: _ } => {}
            Op::PositionScale(PositionScaleAttrs { scale: _, length: _, offset: _ }) => {}
            Op::MulHeads => {}
            Op::Rope { table: _, pairing: RopePairing::Half | RopePairing::Interleaved, heads: _ } => {}
            Op::KvWrite { key: _, value: _ } => {}
            Op::Attention(attrs) | Op::AttentionScores(attrs) | Op::AttentionSoftmax(attrs) => {
                let AttentionAttrs {
                    num_attention_heads: _,
                    num_key_value_heads: _,
                    head_dim: _,
                    value_head_dim: _,
                    scale: _,
                    window: _,
                    chunk: _,
                    soft_cap: _,
                    sinks: _,
                    value_in_key: _,
                    masked: _,
                } = attrs;
            }
            Op::Router(attrs) => {
                let RouterAttrs {
                    num_experts: _,
                    num_experts_per_tok: _,
                    gate:
                        GateKind::Softmax
                        | GateKind::Sigmoid
                        | GateKind::SoftmaxAfterTopK
                        | GateKind::SparseMixer
                        | GateKind::SqrtSoftplus,
                    norm_topk_prob: _,
                    scale: _,
                    selection_bias: _,
                    groups: _,
                    expert_scale: _,
                } = attrs;
            }
            Op::IndexScores(IndexScoresAttrs { num_heads: _, head_dim: _ }) => {}
            Op::IndexSelect { top_k: _, every: _ } => {}
            Op::GivenExperts(attrs) => {
                let GivenExpertsAttrs {
                    num_experts: _,
                    num_experts_per_tok: _,
                    gate:
                        GateKind::Softmax
                        | GateKind::Sigmoid
                        | GateKind::SoftmaxAfterTopK
                        | GateKind::SparseMixer
                        | GateKind::SqrtSoftplus,
                    norm_topk_prob: _,
                    scale: _,
                    divisor: _,
                    table: _,
                } = attrs;
            }
            Op::GatedAct { activation } => any_activation(*activation),
            Op::CausalConv(attrs) => {
                let CausalConvAttrs { weight: _, bias: _, activation, state: _ } = attrs;
                activation.iter().copied().for_each(any_activation);
            }
            Op::DeltaGates { a: _, dt_bias: _, bound: _ } => {}
            Op::DeltaRule(attrs) => {
                let DeltaRuleAttrs {
                    num_key_heads: _,
                    num_value_heads: _,
                    key_head_dim: _,
                    value_head_dim: _,
                    head_map: HeadMap::Tiled | HeadMap::Grouped,
                    eps: _,
                    scale: _,
                    state: _,
                } = attrs;
            }
            Op::SsmScan(attrs) => {
                let SsmScanAttrs {
                    num_heads: _,
                    head_dim: _,
                    state_size: _,
                    n_groups: _,
                    decay_of: DecayOf::Head | DecayOf::Element,
                    a: _,
                    d: _,
                    dt_bias: _,
                    state: _,
                } = attrs;
            }
            Op::HyperGates(HyperGatesAttrs { streams: _, iterations: _, eps: _, scale: _, base: _ }) => {}
            Op::HyperConnect { streams: _ } => {}
            Op::Compress(CompressAttrs { ratio: _, overlap: _, bias: _, state: _ }) => {}
            Op::CompressedAttention(attrs) => {
                let CompressedAttentionAttrs {
                    num_attention_heads: _,
                    head_dim: _,
                    scale: _,
                    window: _,
                    ratio: _,
                    sinks: _,
                    masked: _,
                } = attrs;
            }
            Op::Pointwise {
                function:
                    PointwiseFn::Scale(_)
                    | PointwiseFn::SoftCap(_)
                    | PointwiseFn::Clamp(_)
                    | PointwiseFn::ReluSquared,
            } => {}
            Op::Concat { heads: _ } => {}
            Op::Slice { heads: _, start: _, len: _ } => {}
            Op::ExpertCombine | Op::Add | Op::Mul | Op::GetRows | Op::Tap { stage: _ } => {}
        }
        check_step_operands(NAME, graph, node)
    }

    fn load(
        &self,
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Arc<dyn Weights>, BackendError> {
        options.check(self)?;
        check_weights(graph, source.as_ref())?;
        options.check_only_device(NAME, DEVICE)?;
        planned(graph, source.as_ref(), options)?;
        Ok(Arc::new(ReferenceWeights { table: WeightTable::new(graph), source }))
    }
}

/// A graph's plan under some options, and what its executable will be, which is told; refuses a cache that no host memory
/// holds.
fn planned(
    graph: &Graph,
    source: &dyn WeightSource,
    options: &CompileOptions,
) -> Result<(Plan, ExecutableInfo), BackendError> {
    options.check(&Reference)?;
    graph.nodes.iter().try_for_each(|node| Reference.supports(graph, node))?;
    check_kv_rows(NAME, graph, options.kv_type)?;
    // It keeps the rows as they are read back.
    let micro_batch = options.micro_batch.unwrap_or(MICRO_BATCH).max(1);
    let states = PoolSize::of_one(options.ctx_size, micro_batch);
    check_kv_cache(NAME, graph, KvType::F32, states)?;
    let profile = Reference.profile(options);
    let max_sizes =
        StepSizes { tokens: micro_batch, logits_rows: options.max_logits_rows, cached: options.ctx_size };
    let plan =
        plan(graph, &PlanOptions { taps: &options.taps, patterns: &[], alone: &none_alone, max_sizes })?;
    let info = ExecutableInfo {
        backend: NAME,
        device: DEVICE.into(),
        activations: profile.into(),
        q8_super_block: profile.super_block(),
        kv_type: options.kv_type,
        threads: 1,
        micro_batch,
        weight_bytes: 0,
    };
    let memory = MemoryNeed {
        weight_bytes: mapped_bytes(graph, source),
        kv_cache_bytes: states.bytes(graph, KvType::F32),
        kv_stored: KvType::F32,
        working_bytes: plan.memory.naive_bytes as u64,
        available_bytes: host_memory().map(|m| m.available_bytes),
    };
    options.tell_opened(&info, "", graph, memory);
    Ok((plan, info))
}

/// Weights where their source holds them.
struct ReferenceWeights {
    table: WeightTable,
    source: Arc<dyn WeightSource>,
}

impl Weights for ReferenceWeights {
    fn size_bytes(&self) -> u64 {
        0
    }

    fn compile(&self, graph: &Graph, options: &CompileOptions) -> Result<Box<dyn Executable>, BackendError> {
        self.table.find(graph)?;
        let (plan, info) = planned(graph, self.source.as_ref(), options)?;
        let plan = Arc::new(plan);
        let recorder = ReferenceRecorder {
            weights: Arc::clone(&self.source),
            profile: Reference.profile(options),
            values: vec![None; plan.graph.values.len()],
            plan: Arc::clone(&plan),
            info,
        };
        Ok(Box::new(Runner::new(recorder, vec![plan])))
    }
}

struct ReferenceRecorder {
    plan: Arc<Plan>,
    weights: Arc<dyn WeightSource>,
    profile: ActProfile,
    info: ExecutableInfo,
    /// Every value of the last step, by id.
    values: Vec<Option<HostTensor>>,
}

/// Rows of every state as the KV type reads them back.
struct ReferenceState {
    rows: Vec<Box<[f32]>>,
    rings: Rings,
    size: PoolSize,
    size_bytes: u64,
}

impl State for ReferenceState {
    fn capacity_tokens(&self) -> usize {
        self.size.tokens
    }

    fn rings(&self) -> &[Option<Ring>] {
        &self.rings
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn max_sequences(&self) -> usize {
        self.size.sequences
    }

    fn shares_blocks(&self) -> bool {
        true
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl ReferenceRecorder {
    /// The nodes of some launches, one after another.
    fn nodes(
        &mut self,
        step: &Step<'_>,
        state: &mut ReferenceState,
        launches: &[Launch],
    ) -> Result<(), BackendError> {
        let (weights, profile) = (self.weights.as_ref(), self.profile);
        let (kv_type, values) = (self.info.kv_type, &mut self.values);
        let (graph, sizes, input) = (&step.plan.graph, step.sizes, step.input);
        let mut run = Interpreter { graph, weights, profile, kv_type, sizes, input, state, values };
        launches.iter().flat_map(|launch| step.plan.launch_nodes(launch)).try_for_each(|node| run.node(node))
    }

    /// The elements of some slots of a state.
    fn elems(&self, id: StateId, slots: Range<usize>) -> Range<usize> {
        let width = self.plan.graph.state(id).row_elems();
        slots.start * width..slots.end * width
    }
}

impl Recorder for ReferenceRecorder {
    type State = ReferenceState;

    const BLOCK_TABLES: bool = true;

    fn info(&self) -> &ExecutableInfo {
        &self.info
    }

    fn new_state(&self) -> Result<ReferenceState, BackendError> {
        self.new_pool(self.plan.max_sizes.cached, 1)
    }

    fn new_pool(&self, tokens: usize, sequences: usize) -> Result<ReferenceState, BackendError> {
        let graph = &self.plan.graph;
        let size = PoolSize { tokens, sequences, micro_batch: self.info.micro_batch };
        let size_bytes = size.bytes(graph, KvType::F32);
        let rows = graph.states.iter().map(|s| {
            let elems = size.rows(s).checked_mul(s.row_elems());
            elems.and_then(|elems| bytemuck::allocation::try_zeroed_slice_box(elems).ok())
        });
        let rows = rows.collect::<Option<Vec<_>>>().ok_or_else(|| BackendError::OutOfMemory {
            what: format!("the KV cache of {tokens} tokens, as f32"),
            wanted_bytes: size_bytes,
            available_bytes: 0,
            advice: "lower --ctx-size".into(),
        })?;
        Ok(ReferenceState { rows, rings: size.rings(&graph.states), size, size_bytes })
    }

    fn fits(&self, state: &ReferenceState) -> bool {
        let elems = |s| state.size.rows(s) * s.row_elems();
        state.rows.iter().map(|rows| rows.len()).eq(self.plan.graph.states.iter().map(elems))
    }

    /// The inputs become values, and everything of an earlier step is forgotten.
    fn begin(&mut self, step: &Step<'_>) -> Result<(), BackendError> {
        self.values.fill(None);
        for (value, words) in step.inputs() {
            self.values[value.index()] =
                words.map(|words| HostTensor::u32(vec![words.len()], words.to_vec()));
        }
        Ok(())
    }

    fn run(&mut self, step: &Step<'_>, state: &mut ReferenceState) -> Result<(), BackendError> {
        self.nodes(step, state, &step.plan.launches)
    }

    fn run_launch(
        &mut self,
        step: &Step<'_>,
        launch: usize,
        state: &mut ReferenceState,
    ) -> Result<Duration, BackendError> {
        let start = Instant::now();
        self.nodes(step, state, &step.plan.launches[launch..=launch])?;
        Ok(start.elapsed())
    }

    fn read(
        &mut self,
        _class: usize,
        _sizes: StepSizes,
        value: ValueId,
    ) -> Result<Option<Cow<'_, [u32]>>, BackendError> {
        let words = self.values[value.index()].as_ref().map(|tensor| match &tensor.data {
            TensorData::F32(data) => bytemuck::cast_slice(data),
            TensorData::U32(data) => data.as_slice(),
        });
        Ok(words.map(Cow::Borrowed))
    }

    fn write(
        &mut self,
        _class: usize,
        sizes: StepSizes,
        value: ValueId,
        words: &[u32],
    ) -> Result<bool, BackendError> {
        let decl = self.plan.graph.value(value);
        let data = match decl.dtype {
            DType::F32 => TensorData::F32(bytemuck::cast_slice(words).to_vec()),
            DType::U32 => TensorData::U32(words.to_vec()),
            DType::State => return Ok(false),
        };
        self.values[value.index()] = Some(HostTensor { shape: decl.shape.resolve(sizes), data });
        Ok(true)
    }

    fn read_state(
        &mut self,
        state: &ReferenceState,
        id: StateId,
        slots: Range<usize>,
    ) -> Result<Vec<f32>, BackendError> {
        Ok(state.rows[id.index()][self.elems(id, slots)].to_vec())
    }

    fn write_state(
        &mut self,
        state: &mut ReferenceState,
        id: StateId,
        first_slot: usize,
        rows: &[f32],
    ) -> Result<(), BackendError> {
        let decl = self.plan.graph.state(id);
        let stored = &mut state.rows[id.index()][first_slot * decl.row_elems()..][..rows.len()];
        stored.copy_from_slice(rows);
        // What a whole sequence has is f32 under any KV type.
        if let Lifetime::PerToken { .. } = decl.lifetime {
            stored.chunks_exact_mut(decl.row_elems()).for_each(|row| self.info.kv_type.round_row(row));
        }
        Ok(())
    }
}
