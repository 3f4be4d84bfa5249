//! Stage 5, wgpu: the launches that hold several nodes, and how a launch becomes dispatches.

use super::emit::Emitter;
use super::ops;
use crate::error::BackendError;
use moe_run_graph::ir::LaunchPattern;
use moe_run_graph::passes::Launch;

/// The groups for steps of up to `tokens` tokens, best first.
pub(super) fn for_tokens(_tokens: usize) -> Vec<LaunchPattern> {
    Vec::new()
}

/// Adds the dispatches of a launch.
pub(super) fn emit(e: &mut Emitter<'_>, launch: &Launch) -> Result<(), BackendError> {
    let plan = e.plan;
    for node in plan.launch_nodes(launch) {
        ops::emit(e, node)?;
    }
    Ok(())
}
