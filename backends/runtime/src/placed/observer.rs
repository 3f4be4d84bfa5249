//! What an observer of the whole sees of a part's launches: the whole plan, and the ids of the whole graph.

use crate::error::BackendError;
use crate::executable::{HostTensor, Observer, TapValue, TensorView, ValueAccess};
use moe_run_graph::ir::{StateId, StepSizes, ValueId};
use moe_run_graph::passes::{Launch, Plan};
use std::ops::Range;
use std::time::Duration;

/// Hands a part's launches on as those of the whole plan.
pub(super) struct PartObserver<'a> {
    pub observer: &'a mut dyn Observer,
    /// The whole plan.
    pub plan: &'a Plan,
    /// Launches of the parts before.
    pub base: usize,
    /// The ids in the whole graph of the part's states.
    pub states: &'a [StateId],
    /// The part's name.
    pub label: &'a str,
}

impl<'a> PartObserver<'a> {
    fn launch(&self, of_part: &Launch) -> &'a Launch {
        &self.plan.launches[self.base + of_part.id.index()]
    }
}

impl Observer for PartObserver<'_> {
    fn before_launch(
        &mut self,
        _plan: &Plan,
        launch: &Launch,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        let launch = self.launch(launch);
        let mut values = PartValues { values, states: self.states, label: self.label };
        self.observer.before_launch(self.plan, launch, &mut values)
    }

    fn after_launch(
        &mut self,
        _plan: &Plan,
        launch: &Launch,
        elapsed: Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        let launch = self.launch(launch);
        let mut values = PartValues { values, states: self.states, label: self.label };
        self.observer.after_launch(self.plan, launch, elapsed, &mut values)
    }

    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        self.observer.tap(tap)
    }
}

/// A part's values; states by their ids in the whole graph.
struct PartValues<'a> {
    values: &'a mut dyn ValueAccess,
    states: &'a [StateId],
    label: &'a str,
}

impl PartValues<'_> {
    fn own(&self, state: StateId) -> Result<StateId, BackendError> {
        let own = self.states.iter().position(|s| *s == state);
        own.map(|own| StateId(own as u32)).ok_or_else(|| BackendError::Value {
            value: state.to_string(),
            detail: format!("it is not on {}, whose launch is held", self.label),
        })
    }
}

impl ValueAccess for PartValues<'_> {
    fn sizes(&self) -> StepSizes {
        self.values.sizes()
    }

    fn read(&mut self, value: ValueId) -> Result<HostTensor, BackendError> {
        self.values.read(value)
    }

    fn show(
        &mut self,
        value: ValueId,
        look: &mut dyn FnMut(TensorView<'_>) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        self.values.show(value, look)
    }

    fn write(&mut self, value: ValueId, tensor: &HostTensor) -> Result<(), BackendError> {
        self.values.write(value, tensor)
    }

    fn read_state(&mut self, state: StateId, slots: Range<usize>) -> Result<Vec<f32>, BackendError> {
        let own = self.own(state)?;
        self.values.read_state(own, slots)
    }

    fn write_state(&mut self, state: StateId, first_slot: usize, rows: &[f32]) -> Result<(), BackendError> {
        let own = self.own(state)?;
        self.values.write_state(own, first_slot, rows)
    }
}
