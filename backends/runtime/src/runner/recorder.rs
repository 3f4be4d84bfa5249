//! What a device, or the host, does for one compiled graph: the part of a step that is its own.

use super::{LogitsRow, Step, stored};
use crate::choice::{argmax, best_candidates, not_taken};
use crate::error::BackendError;
use crate::executable::{ExecutableInfo, State};
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{StateId, StepSizes, ValueId};
use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;

/// What a device, or the host, does for one compiled graph. Classes number its plans, those of few tokens first.
pub trait Recorder: Send {
    /// The state that its launches read and write.
    type State: State + 'static;

    /// Whether its launches read block tables: then the sequences of a pool go through a step together, in the state that
    /// [`Recorder::new_pool`] makes; else one after another, each in a state of its own.
    const BLOCK_TABLES: bool = false;

    /// What it is.
    fn info(&self) -> &ExecutableInfo;

    /// Allocates the declared state for one sequence of the compiled context size.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`] with the arithmetic.
    fn new_state(&self) -> Result<Self::State, BackendError>;

    /// Allocates the declared state for several sequences, which share so many tokens; asked for where there are
    /// [`Recorder::BLOCK_TABLES`].
    ///
    /// # Errors
    /// As [`Recorder::new_state`].
    fn new_pool(&self, tokens: usize, sequences: usize) -> Result<Self::State, BackendError> {
        Err(BackendError::Input(format!(
            "one state of {tokens} tokens for {sequences} sequences, wanted one each"
        )))
    }

    /// Whether its launches can use a state, which may be another executable's.
    fn fits(&self, state: &Self::State) -> bool;

    /// What the device has reported behind the calls' backs.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    fn check(&self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Puts the best token of a row where the next step of one token reads it, which begins behind this call; or tells it,
    /// where logits lie on the host.
    ///
    /// # Errors
    /// What the device reports.
    fn choose_next(&mut self, row: &LogitsRow) -> Result<Option<TokenId>, BackendError> {
        self.argmax(row).map(Some)
    }

    /// Begins a step: writes its inputs.
    ///
    /// # Errors
    /// What the device reports.
    fn begin(&mut self, step: &Step<'_>) -> Result<(), BackendError>;

    /// Runs, or queues, all production launches of the step.
    ///
    /// # Errors
    /// What the device reports.
    fn run(&mut self, step: &Step<'_>, state: &mut Self::State) -> Result<(), BackendError>;

    /// Runs one launch of the step to its end and tells its time.
    ///
    /// # Errors
    /// What the device reports.
    fn run_launch(
        &mut self,
        step: &Step<'_>,
        launch: usize,
        state: &mut Self::State,
    ) -> Result<Duration, BackendError>;

    /// The words of a value in a step of these sizes; `None` where the plan does not store it.
    ///
    /// # Errors
    /// What the device reports.
    fn read(
        &mut self,
        class: usize,
        sizes: StepSizes,
        value: ValueId,
    ) -> Result<Option<Cow<'_, [u32]>>, BackendError>;

    /// Replaces the words of a value, as many as it has; whether the plan stores it.
    ///
    /// # Errors
    /// What the device reports.
    fn write(
        &mut self,
        class: usize,
        sizes: StepSizes,
        value: ValueId,
        words: &[u32],
    ) -> Result<bool, BackendError>;

    /// Rows of a state as f32; the slots are there.
    ///
    /// # Errors
    /// What the device reports.
    fn read_state(
        &mut self,
        state: &Self::State,
        id: StateId,
        slots: Range<usize>,
    ) -> Result<Vec<f32>, BackendError>;

    /// Replaces whole rows of a state, rounding as the cache does; the slots are there.
    ///
    /// # Errors
    /// What the device reports.
    fn write_state(
        &mut self,
        state: &mut Self::State,
        id: StateId,
        first_slot: usize,
        rows: &[f32],
    ) -> Result<(), BackendError>;

    /// [`Executable::logits`](crate::executable::Executable::logits).
    ///
    /// # Errors
    /// What the device reports.
    fn logits(&mut self, row: &LogitsRow, out: &mut Vec<f32>) -> Result<(), BackendError> {
        let words = stored(self.read(row.class, row.sizes, row.value)?, row.value)?;
        out.clear();
        out.extend_from_slice(row.of_words(&words));
        Ok(())
    }

    /// [`Executable::argmax`](crate::executable::Executable::argmax).
    ///
    /// # Errors
    /// What the device reports, and a NaN among the logits.
    fn argmax(&mut self, row: &LogitsRow) -> Result<TokenId, BackendError> {
        argmax(row.choosable_of(&stored(self.read(row.class, row.sizes, row.value)?, row.value)?))
    }

    /// [`Executable::candidates`](crate::executable::Executable::candidates).
    ///
    /// # Errors
    /// As [`Recorder::argmax`].
    fn candidates(
        &mut self,
        row: &LogitsRow,
        count: usize,
        out: &mut Vec<(TokenId, f32)>,
    ) -> Result<(), BackendError> {
        let words = stored(self.read(row.class, row.sizes, row.value)?, row.value)?;
        best_candidates(row.choosable_of(&words), count, out)
    }

    /// [`Executable::taken`](crate::executable::Executable::taken), of a token that [`Recorder::choose_next`] did not tell.
    ///
    /// # Errors
    /// As [`Executable::taken`](crate::executable::Executable::taken).
    fn taken(&mut self) -> Result<TokenId, BackendError> {
        Err(not_taken())
    }

    /// [`Executable::queues_steps`](crate::executable::Executable::queues_steps).
    fn queues_steps(&self) -> bool {
        false
    }

    /// [`Executable::expect_candidates`](crate::executable::Executable::expect_candidates).
    fn expect_candidates(&mut self, count: usize) {
        let _ = count;
    }

    /// [`Executable::copy_bytes_per_second`](crate::executable::Executable::copy_bytes_per_second).
    ///
    /// # Errors
    /// [`BackendError::Device`].
    fn copy_bytes_per_second(&mut self) -> Result<Option<f64>, BackendError> {
        Ok(None)
    }

    /// [`Executable::wait`](crate::executable::Executable::wait).
    ///
    /// # Errors
    /// [`BackendError::Device`].
    fn wait(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
}
