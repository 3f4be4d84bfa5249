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
mod concat;
mod embed;
mod expert_combine;
mod expert_matmul;
mod gated_act;
mod get_rows;
mod head_matmul;
mod interpret;
mod kv_write;
pub mod matmul;
mod mul;
mod pointwise;
mod rms_norm;
mod rope;
mod router;
mod slice;

use interpret::Interpreter;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{
    ActivationFn, AttentionAttrs, CausalConvAttrs, GateKind, Graph, LaunchPattern, Lifetime, Node, Op,
    PointwiseFn, RopePairing, RouterAttrs, StepSizes, WeightHome, WeightSlice,
};
use moe_run_graph::passes::{Plan, PlanOptions, none_alone, plan};
use moe_run_graph::quant::{ActBlock, ActProfile};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    Activations, Backend, CompileOptions, DeviceInfo, DeviceKind, Executable, ExecutableInfo, HostTensor,
    KvType, MemoryNeed, Observer, State, StepInput, StepLimits, StepTokens, WeightSource, WeightTable,
    Weights, check_kv_rows, check_step_operands, check_weights, deliver_taps, mapped_bytes, not_taken,
};
use moe_run_runtime::host_memory::{check_kv_cache, host_memory};
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

/// The reference backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference;

/// Its name.
pub const NAME: &str = "reference";

/// The largest T of a step unless asked otherwise.
const MICRO_BATCH: usize = 512;

/// Its one device.
const DEVICE: &str = "scalar interpreter";

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
                    soft_cap: _,
                    sinks: _,
                    value_in_key: _,
                } = attrs;
            }
            Op::Router(attrs) => {
                let RouterAttrs {
                    num_experts: _,
                    num_experts_per_tok: _,
                    gate: GateKind::Softmax | GateKind::Sigmoid | GateKind::SoftmaxAfterTopK,
                    norm_topk_prob: _,
                    scale: _,
                    selection_bias: _,
                    groups: _,
                    expert_scale: _,
                } = attrs;
            }
            Op::GatedAct {
                activation:
                    ActivationFn::Silu
                    | ActivationFn::ClampedSwiglu { alpha: _, limit: _ }
                    | ActivationFn::GeluTanh
                    | ActivationFn::Sigmoid,
            } => {}
            Op::CausalConv(attrs) => {
                let CausalConvAttrs {
                    weight: _,
                    bias: _,
                    activation:
                        None
                        | Some(
                            ActivationFn::Silu
                            | ActivationFn::ClampedSwiglu { alpha: _, limit: _ }
                            | ActivationFn::GeluTanh
                            | ActivationFn::Sigmoid,
                        ),
                    state: _,
                } = attrs;
            }
            Op::Pointwise {
                function: PointwiseFn::Scale(_) | PointwiseFn::SoftCap(_) | PointwiseFn::Clamp(_),
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
    check_kv_cache(NAME, graph, KvType::F32, options.ctx_size)?;
    let profile = Reference.profile(options);
    let micro_batch = options.micro_batch.unwrap_or(MICRO_BATCH).max(1);
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
        kv_cache_bytes: KvType::F32.cache_bytes(graph, options.ctx_size),
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
        Ok(Box::new(ReferenceExecutable {
            weights: Arc::clone(&self.source),
            profile: Reference.profile(options),
            vocab_size: plan.graph.vocab_size(),
            values: vec![None; plan.graph.values.len()],
            taken: None,
            plan,
            info,
        }))
    }
}

struct ReferenceExecutable {
    plan: Plan,
    weights: Arc<dyn WeightSource>,
    profile: ActProfile,
    info: ExecutableInfo,
    vocab_size: Option<usize>,
    /// Every value of the last step, by id.
    values: Vec<Option<HostTensor>>,
    /// The token that the last step chose itself.
    taken: Option<TokenId>,
}

/// Rows of every state as the KV type reads them back.
struct ReferenceState {
    rows: Vec<Box<[f32]>>,
    capacity_tokens: usize,
    max_sequences: usize,
    size_bytes: u64,
}

impl State for ReferenceState {
    fn capacity_tokens(&self) -> usize {
        self.capacity_tokens
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn max_sequences(&self) -> usize {
        self.max_sequences
    }

    fn shares_blocks(&self) -> bool {
        true
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl Executable for ReferenceExecutable {
    fn info(&self) -> &ExecutableInfo {
        &self.info
    }

    fn plan(&self, _tokens: usize) -> &Plan {
        &self.plan
    }

    fn new_state(&self) -> Result<Box<dyn State>, BackendError> {
        self.new_pool(self.plan.max_sizes.cached, 1)
    }

    fn new_pool(&self, tokens: usize, sequences: usize) -> Result<Box<dyn State>, BackendError> {
        let graph = &self.plan.graph;
        let size_bytes = KvType::F32.pool_bytes(graph, tokens, sequences);
        let rows = graph.states.iter().map(|s| {
            let rows = match s.lifetime {
                Lifetime::PerToken { .. } => tokens,
                Lifetime::PerSequence => sequences,
            };
            let elems = rows.checked_mul(s.row_elems());
            elems.and_then(|elems| bytemuck::allocation::try_zeroed_slice_box(elems).ok())
        });
        let rows = rows.collect::<Option<Vec<_>>>().ok_or_else(|| BackendError::OutOfMemory {
            what: format!("the KV cache of {tokens} tokens, as f32"),
            wanted_bytes: size_bytes,
            available_bytes: 0,
            advice: "lower --ctx-size".into(),
        })?;
        Ok(Box::new(ReferenceState { rows, capacity_tokens: tokens, max_sequences: sequences, size_bytes }))
    }

    fn step(
        &mut self,
        state: &mut dyn State,
        input: &StepInput<'_>,
        mut observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        let Some(state) = state.as_any_mut().downcast_mut::<ReferenceState>() else {
            return Err(BackendError::Input("the state belongs to another backend".into()));
        };
        input.check(&StepLimits {
            sizes: self.plan.max_sizes,
            vocab_size: self.vocab_size,
            slots: state.capacity_tokens,
            places: state.max_sequences,
        })?;
        let chosen;
        let tokens: &[TokenId] = match input.tokens {
            StepTokens::Host(tokens) => {
                self.taken = None;
                tokens
            }
            StepTokens::Argmax { row } => {
                chosen = [self.argmax(row)?];
                self.taken = Some(chosen[0]);
                &chosen
            }
        };
        let values = std::mem::take(&mut self.values);
        let mut run = Interpreter::new(self, state, input, tokens, values);
        let result = (|| {
            for launch in &self.plan.launches {
                if let Some(observer) = observer.as_deref_mut() {
                    observer.before_launch(&self.plan, launch, &mut run)?;
                }
                let start = Instant::now();
                for node in self.plan.launch_nodes(launch) {
                    run.node(node)?;
                }
                let elapsed = start.elapsed();
                if let Some(observer) = observer.as_deref_mut() {
                    observer.after_launch(&self.plan, launch, elapsed, &mut run)?;
                    deliver_taps(&self.plan, launch, input, &mut run, observer)?;
                }
            }
            Ok(())
        })();
        self.values = run.into_values();
        result
    }

    fn logits(&mut self, row: usize, out: &mut Vec<f32>) -> Result<(), BackendError> {
        let logits = self.output(0)?;
        let width = logits.shape.last().copied().unwrap_or(0);
        let data = logits.data.to_f32();
        let Some(found) = data.get(row * width..(row + 1) * width) else {
            return Err(BackendError::Input(format!("row {row} of {} rows of logits", logits.shape[0])));
        };
        out.clear();
        out.extend_from_slice(found);
        Ok(())
    }

    fn taken(&mut self) -> Result<TokenId, BackendError> {
        self.taken.ok_or_else(not_taken)
    }

    fn output(&mut self, index: usize) -> Result<HostTensor, BackendError> {
        let value = self.plan.graph.outputs.get(index);
        let tensor = value.and_then(|v| self.values.get(v.index())?.clone());
        tensor.ok_or_else(|| BackendError::Value {
            value: format!("output {index}"),
            detail: "no step has computed it".into(),
        })
    }
}
