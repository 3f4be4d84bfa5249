//! Several sequences on a device whose launches know one.

use super::Recorder;
use crate::error::BackendError;
use crate::executable::{Ring, State};
use std::any::Any;

/// States of several sequences on a device whose launches know one: a state for each, of the whole context size.
pub(super) struct Pool<S> {
    pub states: Vec<S>,
    capacity_tokens: usize,
}

impl<S: State> Pool<S> {
    pub fn new<R: Recorder<State = S>>(
        recorder: &R,
        capacity_tokens: usize,
        sequences: usize,
    ) -> Result<Pool<S>, BackendError> {
        let states = (0..sequences).map(|_| recorder.new_state()).collect::<Result<_, _>>()?;
        Ok(Pool { states, capacity_tokens })
    }
}

impl<S: State + 'static> State for Pool<S> {
    fn capacity_tokens(&self) -> usize {
        self.capacity_tokens
    }

    fn rings(&self) -> &[Option<Ring>] {
        self.states.first().map_or(&[], State::rings)
    }

    fn max_sequences(&self) -> usize {
        self.states.len()
    }

    fn size_bytes(&self) -> u64 {
        self.states.iter().map(State::size_bytes).sum()
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
