//! A sequence's own states between steps: read, and put back.

use super::Recorder;
use crate::error::BackendError;
use crate::executable::{SequenceStates, State};
use moe_run_graph::ir::Graph;

/// What they hold; nothing of a pool of several sequences, which nobody asks to go back.
pub(super) fn read<R: Recorder>(
    recorder: &mut R,
    graph: &Graph,
    state: &mut dyn State,
    place: usize,
) -> Result<SequenceStates, BackendError> {
    let mut rows = SequenceStates::new();
    let Some(state) = state.as_any_mut().downcast_mut::<R::State>() else { return Ok(rows) };
    for id in graph.sequence_states() {
        rows.push((id, recorder.read_state(state, id, place..place + 1)?));
    }
    Ok(rows)
}

/// Puts back what [`read`] gave.
pub(super) fn restore<R: Recorder>(
    recorder: &mut R,
    state: &mut dyn State,
    place: usize,
    kept: &SequenceStates,
) -> Result<(), BackendError> {
    let Some(state) = state.as_any_mut().downcast_mut::<R::State>() else {
        return Err(BackendError::Input("the state belongs to another backend".into()));
    };
    kept.iter().try_for_each(|(id, row)| recorder.write_state(state, *id, place, row))
}
