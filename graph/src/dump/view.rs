//! What a dump holds: the stable schema that JSON writes out and that text, DOT and HTML are drawn from.
//!
//! `docs/graph-json.md` documents every field; a test holds the two together. Ids are those of the graph's arenas and
//! stay the same at every level.

use super::kernel::KernelInfo;
use crate::cost::Cost;
use crate::ir::{LeftOut, Shape, StateRole, StepSizes};
use serde::Serialize;
use std::collections::BTreeMap;

/// Raised when a field changes its meaning or goes away; fields may be added without.
pub const SCHEMA_VERSION: u32 = 1;

/// How far along the pipeline the dump was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As lowering made it.
    Lowered,
    /// After the passes: each node with its launch.
    Optimized,
    /// Launches in order, with kernels, buffers and costs.
    Plan,
}

impl Level {
    /// The name on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Level::Lowered => "lowered",
            Level::Optimized => "optimized",
            Level::Plan => "plan",
        }
    }
}

/// A graph or a plan, ready to be written out.
#[derive(Debug, Clone, Serialize)]
pub struct Dump {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Program and version.
    pub generator: String,
    /// How far along the pipeline.
    pub level: Level,
    /// Passes that have run.
    pub passes: Vec<&'static str>,
    /// The model.
    pub model: ModelView,
    /// The backend whose launch patterns and kernels are shown; `None` for the lowered graph.
    pub backend: Option<BackendView>,
    /// The step that costs are stated for.
    pub step: StepView,
    /// Bandwidth that `roofline_seconds` are reckoned with.
    pub bandwidth_bytes_per_s: Option<f64>,
    /// Steps that measured times are means of.
    pub profiled_steps: Option<usize>,
    /// Sums over what is shown.
    pub totals: TotalsView,
    /// Layers of equal structure.
    pub layer_groups: Vec<LayerGroupView>,
    /// Operations in execution order.
    pub nodes: Vec<NodeView>,
    /// Taps in execution order.
    pub taps: Vec<TapView>,
    /// What flows between nodes.
    pub values: Vec<ValueView>,
    /// Weight tensors.
    pub weights: Vec<WeightView>,
    /// What outlives a step.
    pub states: Vec<StateView>,
    /// Launches in execution order; empty for the lowered graph.
    pub launches: Vec<LaunchView>,
    /// The arena of values that cross launches; only of a plan.
    pub memory: Option<MemoryView>,
    /// Costs by kind of launch, or of op in the lowered graph; the dearest first.
    pub kinds: Vec<KindView>,
}

/// The step that costs are stated for.
#[derive(Debug, Clone, Serialize)]
pub struct StepView {
    /// T, R and S.
    #[serde(flatten)]
    pub sizes: StepSizes,
    /// How the KV cache is stored.
    pub kv_type: String,
}

/// The model's dimensions.
#[derive(Debug, Clone, Serialize)]
pub struct ModelView {
    /// As the file names it.
    pub architecture: String,
    /// As the file names it.
    pub name: Option<String>,
    /// Layers of the model, shown or not.
    pub num_hidden_layers: usize,
    /// D.
    pub hidden_size: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// All weights as the file stores them.
    pub weight_bytes: u64,
    /// Tensors of the file that the graph leaves out on purpose.
    pub left_out: Vec<LeftOut>,
}

/// The backend of a plan.
#[derive(Debug, Clone, Serialize)]
pub struct BackendView {
    /// Its name.
    pub name: String,
    /// The device, where one was opened.
    pub device: Option<String>,
    /// What it multiplies quantized weights with: f32, f16 or q8.
    pub activations: String,
    /// Elements of the 8-bit block for super-block formats; `None` unless activations are q8.
    pub q8_super_block: Option<usize>,
}

/// Sums over the nodes and launches shown.
#[derive(Debug, Clone, Serialize)]
pub struct TotalsView {
    /// Operations, taps not counted.
    pub nodes: usize,
    /// Taps that are kept.
    pub taps: usize,
    /// Launches.
    pub launches: usize,
    /// Of the launches; of the nodes in the lowered graph.
    pub cost: CostView,
    /// Of the launches.
    pub measured: Option<MeasuredView>,
}

/// A cost with its sums.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CostView {
    /// The parts.
    #[serde(flatten)]
    pub cost: Cost,
    /// All bytes, read and written.
    pub total_bytes: u64,
    /// The time that the bytes alone take at the stated bandwidth.
    pub roofline_seconds: Option<f64>,
}

impl CostView {
    /// The cost with its sums.
    #[must_use]
    pub fn new(cost: Cost, bandwidth_bytes_per_s: Option<f64>) -> CostView {
        CostView {
            cost,
            total_bytes: cost.bytes(),
            roofline_seconds: bandwidth_bytes_per_s.map(|b| cost.seconds_at(b)),
        }
    }
}

/// A measured time beside what it is measured by.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MeasuredView {
    /// Mean of the profiled steps.
    pub seconds: f64,
    /// Of all launches' time.
    pub share: f64,
    /// Counted bytes over time.
    pub bandwidth_bytes_per_s: f64,
    /// Roofline time over measured time: 1 is as fast as the memory.
    pub roofline_share: Option<f64>,
}

/// An operation.
#[derive(Debug, Clone, Serialize)]
pub struct NodeView {
    /// Its id.
    pub id: u32,
    /// `layer-3/q_proj`.
    pub path: String,
    /// `q_proj`.
    pub name: &'static str,
    /// The op's stem.
    pub op: &'static str,
    /// Its layer; `None` for the whole model's.
    pub layer: Option<usize>,
    /// The op's attributes by name.
    pub attributes: serde_json::Map<String, serde_json::Value>,
    /// Values read, in the op's order.
    pub inputs: Vec<u32>,
    /// Values made, in the op's order.
    pub outputs: Vec<u32>,
    /// Weights read.
    pub weights: Vec<u32>,
    /// States written or read.
    pub states: Vec<u32>,
    /// It leads to the logits; otherwise only to a tap, and is recomputed beside them.
    pub production: bool,
    /// The launch that holds it.
    pub launch: Option<u32>,
    /// Its phase in that launch: 0, as launches have one.
    pub phase: Option<usize>,
    /// Run by itself.
    pub cost: CostView,
}

/// A tap.
#[derive(Debug, Clone, Serialize)]
pub struct TapView {
    /// `layer-3/moe_router`.
    pub path: String,
    /// `moe_router`.
    pub stage: &'static str,
    /// Its layer; `None` for the whole model's.
    pub layer: Option<usize>,
    /// The values that it hands out side by side.
    pub inputs: Vec<u32>,
    /// The node that makes the last of them; `None` where a pass dropped it, or for a boundary input.
    pub node: Option<u32>,
    /// The launch that delivers it.
    pub launch: Option<u32>,
    /// It was asked for (in the lowered graph: every tap).
    pub kept: bool,
    /// What it taps leads to the logits.
    pub production: bool,
}

/// A value.
#[derive(Debug, Clone, Serialize)]
pub struct ValueView {
    /// Its id.
    pub id: u32,
    /// The producer's path, with the result's name where there are several; a step input's name.
    pub name: String,
    /// Outermost first; T tokens, R rows of logits, S cached positions.
    pub shape: Shape,
    /// `f32`, `u32` or `state`.
    pub dtype: crate::ir::DType,
    /// The node that makes it; `None` for a boundary input.
    pub producer: Option<u32>,
    /// The state that it is.
    pub state: Option<u32>,
    /// Its place in the arena, where it has one.
    pub buffer: Option<BufferView>,
}

/// A place in the arena.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct BufferView {
    /// From the arena's start.
    pub offset_bytes: usize,
    /// At the plan's largest sizes.
    pub size_bytes: usize,
    /// The launch that makes it.
    pub first_launch: usize,
    /// The last launch that needs it; one past the last for outputs.
    pub last_launch: usize,
}

/// A weight tensor.
#[derive(Debug, Clone, Serialize)]
pub struct WeightView {
    /// Its id.
    pub id: u32,
    /// As the file names it.
    pub name: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// As the file stores it.
    pub format: &'static str,
    /// As the file stores it.
    pub size_bytes: u64,
}

/// A state.
#[derive(Debug, Clone, Serialize)]
pub struct StateView {
    /// Its id.
    pub id: u32,
    /// `key` or `value`.
    pub role: StateRole,
    /// Whose.
    pub layer: usize,
    /// KV heads.
    pub heads: usize,
    /// Elements of a head.
    pub width: usize,
    /// Only the last so many tokens are read.
    pub window: Option<usize>,
}

/// A launch.
#[derive(Debug, Clone, Serialize)]
pub struct LaunchView {
    /// Its place.
    pub id: u32,
    /// The pattern's name, or the op's stem.
    pub kind: &'static str,
    /// Its layer; `None` for the whole model's.
    pub layer: Option<usize>,
    /// Nodes by phase: one list.
    pub phases: Vec<Vec<u32>>,
    /// Paths of the taps that it delivers.
    pub taps: Vec<String>,
    /// It feeds nothing but taps.
    pub recomputed: bool,
    /// Values that it reads and does not make.
    pub reads: Vec<u32>,
    /// Values that it stores.
    pub writes: Vec<u32>,
    /// What runs it, where the backend says.
    pub kernel: Option<KernelInfo>,
    /// What it must move, and its work.
    pub cost: CostView,
    /// Measured, where it was.
    pub measured: Option<MeasuredView>,
}

/// The arena.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MemoryView {
    /// Its size.
    pub arena_bytes: usize,
    /// What separate buffers would take.
    pub naive_bytes: usize,
    /// Values that have a place in it.
    pub slots: usize,
}

/// Layers of equal structure: ops, attributes, shapes, launches; tensor formats may differ.
#[derive(Debug, Clone, Serialize)]
pub struct LayerGroupView {
    /// Ascending.
    pub layers: Vec<usize>,
    /// The first layer's nodes.
    pub nodes: Vec<u32>,
    /// The first layer's launches.
    pub launches: Vec<u32>,
    /// Nodes whose weights' formats differ between the layers, by node name.
    pub formats: BTreeMap<&'static str, BTreeMap<String, Vec<usize>>>,
    /// All its layers together.
    pub cost: CostView,
    /// All its layers together.
    pub measured: Option<MeasuredView>,
}

/// All launches of one kind.
#[derive(Debug, Clone, Serialize)]
pub struct KindView {
    /// The pattern's name, or the op's stem.
    pub kind: &'static str,
    /// How many.
    pub count: usize,
    /// Together.
    pub cost: CostView,
    /// Together.
    pub measured: Option<MeasuredView>,
}

/// Mean times of a plan's launches, from a profiler.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MeasuredTimes {
    /// Steps that were timed.
    pub steps: usize,
    /// By launch id: mean seconds per step.
    pub launch_seconds: Vec<f64>,
}
