//! Stage 5, wgpu: what a compiled plan is: dispatches whose pipelines and bindings are made.

use super::emit::{Grid, StateBinding};
use moe_run_graph::passes::Plan;
use std::sync::Arc;

/// A dispatch that is ready to be encoded.
pub(super) struct Ready {
    pub pipeline: wgpu::ComputePipeline,
    pub bindings: wgpu::BindGroup,
    pub state: StateBinding,
    pub grid: Grid,
    pub when_split: bool,
}

/// A plan for one token class, compiled.
pub(super) struct Program {
    pub plan: Arc<Plan>,
    /// Dispatches of each launch.
    pub launches: Vec<Vec<Ready>>,
    pub max_splits: usize,
}

/// Bytes of `struct Step` in common/arena.wgsl.
pub(super) const STEP_BYTES: u64 = 32;

/// The two dispatches of the sampler and their parameters, which say what it chooses from.
pub(super) struct Sampling {
    pub dispatches: Vec<Ready>,
    pub params: wgpu::Buffer,
    /// Where each dispatch's parameters begin in it, with [`sample::Wanted`].
    pub params_at: [u64; 2],
}
