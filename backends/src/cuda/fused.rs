//! Launch groups of the decode step.

use moe_run_graph::ir::LaunchPattern;

/// The groups for steps of up to `tokens` tokens, best first.
pub(super) fn patterns(_tokens: usize) -> Vec<LaunchPattern> {
    Vec::new()
}
