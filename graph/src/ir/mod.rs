//! The static op graph: what stage 3 makes and every later stage reads.
//!
//! [`op`] is the closed set of operations, [`graph`] the arena of nodes and values with typed ids, [`infer`] the shape
//! rules, [`stage`] the names that taps have, [`pattern`] the groups of nodes that a backend can run as one launch.
//! Absent on purpose: anything a device knows (buffers, kernels, streams).

mod compressed;
pub mod graph;
pub mod infer;
pub mod op;
pub mod pattern;
mod recurrent;
mod renumber;
pub mod rope;
mod routing;
mod shape;
pub mod stage;
mod visible;

pub use compressed::{CompressAttrs, CompressedAttentionAttrs, HyperGatesAttrs};
pub use graph::{
    Graph, LayerIdx, LeftOut, Lifetime, Node, NodeId, Rewind, RopeTableId, StateDecl, StateId, StateRole,
    StateStage, StepInputs, Value, ValueId, WeightDecl, WeightId,
};
pub use op::{
    ActivationFn, AttentionAttrs, CausalConvAttrs, DType, Dim, ExpertGroups, GateKind, GivenExpertsAttrs,
    GroupScore, IndexScoresAttrs, Op, OpKind, PointwiseFn, PositionScaleAttrs, RouterAttrs, Shape, StepSizes,
    WeightHome, WeightSlice,
};
pub use pattern::LaunchPattern;
pub use recurrent::{DecayOf, DeltaRuleAttrs, HeadMap, SsmScanAttrs};
pub use rope::{RopePairing, RopeScaling, RopeSpec};
pub use stage::{RowAxis, Stage, StageScope};
