//! Stages that show states. They have no taps: whoever wants one reads it behind the launch that changes the last of its states.

use moe_run_graph::ir::{LayerIdx, Stage};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{HostTensor, ValueAccess};

/// The stages of the wanted whose states a launch has changed, and what these hold of the first sequence behind the step's last
/// token. Nothing else is read.
///
/// # Errors
/// What reading a state reports.
pub fn changed_states(
    plan: &Plan,
    launch: &Launch,
    values: &mut dyn ValueAccess,
    wanted: impl Fn(Stage, LayerIdx) -> bool,
) -> Result<Vec<(Stage, LayerIdx, HostTensor)>, BackendError> {
    let written: Vec<_> = plan.launch_nodes(launch).flat_map(|node| node.op.written_states()).collect();
    if written.iter().all(|id| plan.graph.state(*id).stage().is_none()) {
        return Ok(Vec::new());
    }
    let mut changed = Vec::new();
    for stage in plan.graph.state_stages() {
        let is_whole = stage.states.last().is_some_and(|last| written.contains(last));
        if is_whole && wanted(stage.stage, stage.layer) {
            let mut held = Vec::new();
            for state in &stage.states {
                held.extend(values.read_state(*state, 0..1)?);
            }
            changed.push((stage.stage, stage.layer, HostTensor::f32(stage.shape, held)));
        }
    }
    Ok(changed)
}
