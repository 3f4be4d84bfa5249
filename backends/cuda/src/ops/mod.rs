//! Nodes to kernel launches: one file an op, and the tables and scratch that they share.

mod add;
pub(super) mod attention;
mod attention_scores;
mod attention_softmax;
mod causal_conv;
mod compress;
mod compressed_attention;
mod concat;
mod delta_gates;
pub(super) mod delta_rule;
mod embed;
mod expert_combine;
mod expert_matmul;
mod gated_act;
mod get_rows;
mod given_experts;
mod head_matmul;
mod hyper_connect;
mod hyper_gates;
mod index_scores;
mod index_select;
mod kv_write;
mod layer_norm;
pub(super) mod matmul;
mod mul;
mod mul_heads;
mod pointwise;
mod position_scale;
pub(super) mod rms_norm;
mod rope;
pub(super) mod router;
mod scratch;
mod slice;
mod ssm_scan;

pub(super) use attention::split_geometry;
pub(super) use gated_act::activation_params;
pub(super) use scratch::{ARGMAX_PARTS, Scratch, ScratchSizes, TOP_PART_ELEMS};

use super::driver::{DeviceBuffer, Driver, KernelLaunch, Param};
use super::state::CudaState;
use super::values::Values;
use super::weights::GraphWeights;
use super::{NAME, device, groups};
use moe_run_graph::ir::{
    CausalConvAttrs, Graph, Node, Op, OpKind, RopePairing, StateId, StepSizes, ValueId, WeightHome,
    WeightSlice,
};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::{ActProfile, ActivationPrecision};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{KvType, check_step_operands};

/// The most experts that kernels/common/top_k.cuh holds.
const MAX_EXPERTS: usize = 1024;

/// What launches before left in the scratch for those behind them: activations in 8 bits, pairs sorted by expert. Good for one
/// step, as long as nobody replaces values between its launches.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Prepared {
    pub quantized: Option<ValueId>,
    pub sorted: Option<ValueId>,
}

/// Everything that launches of a step refer to.
pub(super) struct Emit<'a> {
    pub driver: &'a dyn Driver,
    pub graph: &'a Graph,
    pub values: Values<'a>,
    pub sizes: StepSizes,
    pub weights: &'a GraphWeights,
    pub state: &'a CudaState,
    /// cos and sin of every RoPE table, [positions, dims/2, 2].
    pub rope_tables: &'a [DeviceBuffer],
    pub scratch: &'a Scratch,
    pub profile: ActProfile,
    pub kv_type: KvType,
    pub positions_capacity: usize,
    /// Kernels that multiply tiles run on the device.
    pub matrix_units: bool,
    /// What the scratch holds.
    pub prepared: Prepared,
    /// What has been emitted.
    pub launches: Vec<KernelLaunch>,
}

impl Emit<'_> {
    /// A value's memory.
    pub fn value(&self, id: ValueId) -> Result<Param, BackendError> {
        let found = self.values.place(id, self.sizes).map(|(param, _)| param);
        found.ok_or_else(|| BackendError::Value {
            value: id.to_string(),
            detail: "the plan gives it no memory".into(),
        })
    }

    /// A value's memory, or null if nothing outside the launch needs it.
    pub fn opt_value(&self, id: ValueId) -> Param {
        self.values.place(id, self.sizes).map_or(Param::NULL, |(param, _)| param)
    }

    fn state_of(&self, id: ValueId) -> Result<StateId, BackendError> {
        let state: Option<StateId> = self.graph.value(id).state;
        state.ok_or_else(|| BackendError::Value { value: id.to_string(), detail: "is no state".into() })
    }

    /// The cache of a state value.
    pub fn cache(&self, id: ValueId) -> Result<Param, BackendError> {
        Ok(self.state.param(self.state_of(id)?))
    }

    /// Rows of the cache of a state value: position p is in row p modulo so many.
    pub fn cache_rows(&self, id: ValueId) -> Result<Param, BackendError> {
        Ok(int(self.state.rows(self.state_of(id)?)))
    }

    /// The last axis of a value.
    pub fn width(&self, id: ValueId) -> Result<usize, BackendError> {
        let shape = &self.graph.value(id).shape;
        shape.width().ok_or_else(|| BackendError::Value {
            value: id.to_string(),
            detail: format!("{shape} has no fixed last axis"),
        })
    }

    /// Elements of a value in this step.
    pub fn elems(&self, id: ValueId) -> usize {
        self.graph.value(id).shape.elems(self.sizes)
    }

    /// Rows of a value in this step, counting all axes but the last.
    pub fn rows(&self, id: ValueId) -> usize {
        self.elems(id) / self.graph.value(id).shape.width().unwrap_or(1).max(1)
    }

    /// How many blocks of a kernel the device holds at once.
    pub fn blocks_at_once(
        &self,
        kernel: &'static str,
        threads: u32,
        shared: usize,
    ) -> Result<usize, BackendError> {
        let each = self.driver.resident_blocks(kernel, threads, shared as u32);
        let each = each.map_err(|e| device::error(&self.driver.info().name, e))?;
        Ok(self.driver.info().multiprocessors as usize * each.max(1) as usize)
    }

    /// The KV type's number in kernels/common/kv.cuh.
    pub fn kv_code(&self) -> Param {
        Param::I32(match self.kv_type {
            KvType::F16 => 0,
            KvType::F32 => 1,
            KvType::Q8_0 => 2,
        })
    }

    /// Appends a launch, unless a step without rows leaves its grid empty.
    pub fn push(
        &mut self,
        kernel: &'static str,
        grid: [usize; 3],
        threads: u32,
        shared: usize,
        params: Vec<Param>,
    ) {
        if grid.contains(&0) {
            return;
        }
        self.launches.push(KernelLaunch {
            kernel,
            grid: grid.map(|n| n as u32),
            threads,
            shared_bytes: shared as u32,
            params,
        });
    }

    /// Appends the kernels of a launch of a plan: of one node, or of a group.
    pub fn launch(&mut self, plan: &Plan, launch: &Launch) -> Result<(), BackendError> {
        let nodes: Vec<_> = plan.launch_nodes(launch).collect();
        match nodes.as_slice() {
            [node] => self.node(node),
            group => groups::emit(self, launch.pattern, group),
        }
    }

    /// Appends the launches of one node.
    pub fn node(&mut self, node: &Node) -> Result<(), BackendError> {
        match &node.op {
            Op::Embed { table, scale } => embed::emit(self, node, table, *scale),
            Op::RmsNorm { weight, eps, heads } => rms_norm::emit(self, node, *weight, *eps, *heads),
            Op::HeadMatMul { weight, transposed } => head_matmul::emit(self, node, weight, *transposed),
            Op::MatMul { weight, bias, scale } => matmul::emit(self, node, weight, *bias, *scale),
            Op::Rope { table, pairing, heads } => rope::emit(self, node, *table, *pairing, *heads),
            Op::KvWrite { key, value } => kv_write::emit(self, node, *key, *value),
            Op::Attention(attrs) => attention::emit(self, node, attrs),
            Op::AttentionScores(attrs) => attention_scores::emit(self, node, attrs),
            Op::AttentionSoftmax(attrs) => attention_softmax::emit(self, node, attrs),
            Op::Router(attrs) => router::emit(self, node, attrs),
            Op::GivenExperts(attrs) => given_experts::emit(self, node, attrs),
            Op::IndexScores(attrs) => index_scores::emit(self, node, attrs),
            Op::IndexSelect { top_k, every } => index_select::emit(self, node, *top_k, *every),
            Op::ExpertMatMul { weight, bias } => expert_matmul::emit(self, node, weight, *bias),
            Op::GatedAct { activation } => gated_act::emit(self, node, *activation),
            Op::ExpertCombine => expert_combine::emit(self, node),
            Op::Add => add::emit(self, node),
            Op::Mul => mul::emit(self, node),
            Op::GetRows => get_rows::emit(self, node),
            Op::Pointwise { function } => pointwise::emit(self, node, *function),
            Op::Concat { heads } => concat::emit(self, node, *heads),
            Op::Slice { heads, start, len } => slice::emit(self, node, *heads, *start, *len),
            Op::DeltaGates { a, dt_bias, bound } => delta_gates::emit(self, node, *a, *dt_bias, *bound),
            Op::DeltaRule(attrs) => delta_rule::emit(self, node, attrs),
            Op::SsmScan(attrs) => ssm_scan::emit(self, node, attrs),
            Op::CausalConv(attrs) => causal_conv::emit(self, node, attrs),
            Op::HyperGates(attrs) => hyper_gates::emit(self, node, attrs),
            Op::HyperConnect { streams } => hyper_connect::emit(self, node, *streams),
            Op::Compress(attrs) => compress::emit(self, node, attrs),
            Op::CompressedAttention(attrs) => compressed_attention::emit(self, node, attrs),
            Op::LayerNorm { weight, bias, eps } => layer_norm::emit(self, node, *weight, *bias, *eps),
            Op::PositionScale(attrs) => position_scale::emit(self, node, attrs),
            Op::MulHeads => mul_heads::emit(self, node),
            // What a tap hands on lies in its inputs' memory: it is no launch.
            Op::Tap { stage: _ } => Err(BackendError::mismatch(node.op.stem())),
        }
    }
}

/// A size as kernels take it. Every buffer is far below 2³¹ elements by the checks in `supports` and `compile`.
pub(super) fn int(n: usize) -> Param {
    Param::I32(n as i32)
}

/// Threads for a loop over `n` elements by one block: whole warps, at most 256.
pub(super) fn threads_for(n: usize) -> u32 {
    (n.clamp(1, 256).next_multiple_of(32)) as u32
}

/// The kernel that runs a node by itself, at the default activations, with the format that it decodes.
pub(super) fn kernel_name(graph: &Graph, node: &Node, tokens: usize, profile: ActProfile) -> String {
    let Some(slice) = node.op.weight_slice() else { return node.op.stem().to_owned() };
    let format = graph.weight(slice.tensor).format;
    let activation = profile.for_weights(format);
    let is_q8 = matches!(activation, ActivationPrecision::Q8(_));
    let act = if is_q8 { "q8" } else { "f32" };
    let (one, many) = match node.op.kind() {
        OpKind::MatMul => (format!("matmul_{act}_t1"), format!("matmul_{act}_t8")),
        OpKind::ExpertMatMul => (format!("expert_matmul_{act}"), format!("expert_matmul_grouped_{act}")),
        other => return format!("{} ({})", other.stem(), format.name()),
    };
    let kernel = match tokens {
        ..=1 => one,
        matmul::TILES_FROM_TOKENS.. if is_q8 => "matmul_tiles".to_owned(),
        2.. => many,
    };
    let rounds = if activation == ActivationPrecision::F16 { "round_f16 + " } else { "" };
    format!("{rounds}{kernel} ({})", format.name())
}

/// Whether the kernels can run a node: each op with every attribute that they read, so that one more does not compile here.
pub(super) fn supports(graph: &Graph, node: &Node) -> Result<(), BackendError> {
    check_step_operands(NAME, graph, node)?;
    let lacking = match &node.op {
        Op::Embed { table, scale: _ } => any_rows(table),
        Op::RmsNorm { weight: _, eps: _, heads: _ } => None,
        Op::MatMul { weight, bias: _, scale: _ } => any_rows(weight),
        Op::ExpertMatMul { weight, bias: _ } => {
            any_rows(weight).or_else(|| expert_matmul::lacking(graph, weight))
        }
        Op::Rope { table: _, pairing: RopePairing::Half | RopePairing::Interleaved, heads: _ } => None,
        Op::KvWrite { key: _, value: _ } => None,
        Op::Attention(attrs) | Op::AttentionScores(attrs) | Op::AttentionSoftmax(attrs) => {
            attention::lacking(attrs)
        }
        Op::Router(attrs) => router::lacking(attrs),
        Op::GivenExperts(attrs) => given_experts::lacking(attrs),
        Op::IndexScores(attrs) => index_scores::lacking(attrs),
        Op::IndexSelect { top_k, every } => index_select::lacking(*top_k, *every),
        Op::HeadMatMul { weight, transposed: _ } => any_rows(weight),
        Op::LayerNorm { weight: _, bias: _, eps: _ } | Op::MulHeads => None,
        Op::PositionScale(attrs) => position_scale::lacking(attrs),
        Op::DeltaGates { a: _, dt_bias: _, bound: _ } => None,
        Op::DeltaRule(attrs) => delta_rule::lacking(attrs),
        Op::SsmScan(attrs) => ssm_scan::lacking(attrs),
        // `gated_act::activation_params` numbers each function.
        Op::GatedAct { activation: _ } => None,
        Op::CausalConv(CausalConvAttrs { weight: _, bias: _, activation: _, state: _ }) => None,
        Op::HyperGates(attrs) => hyper_gates::lacking(attrs),
        Op::HyperConnect { streams: _ } => None,
        Op::Compress(attrs) => compress::lacking(attrs),
        Op::CompressedAttention(attrs) => compressed_attention::lacking(attrs),
        Op::Pointwise { function: _ } => None,
        Op::Concat { heads: _ } | Op::Slice { heads: _, start: _, len: _ } => None,
        Op::ExpertCombine | Op::Add | Op::Mul | Op::GetRows => None,
        Op::Tap { stage: _ } => None,
    };
    match lacking {
        None => Ok(()),
        Some(detail) => {
            Err(BackendError::Unsupported { backend: NAME, node: node.path(), op: node.op.stem(), detail })
        }
    }
}

/// What a slice asks for that the kernels lack: nothing, any rows of any experts are read.
fn any_rows(slice: &WeightSlice) -> Option<String> {
    let WeightSlice { tensor: _, rows: _, experts: _, home: WeightHome::Device } = slice;
    None
}
