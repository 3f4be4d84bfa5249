//! Steps that tell which experts every row chose: the same graph, compiled once more with the taps of the experts' ids.
//!
//! Taps change nothing, so the values are those of any other step; only what looks on is slower, and made when it is first
//! wanted.

use super::{Feed, Sequences};
use crate::error::BackendError;
use crate::executable::{Executable, Observer, TapValue};
use moe_run_graph::ir::Stage;

/// The experts that a row chose, by layer, in the order of the layers.
pub type Experts = Vec<(usize, Vec<u32>)>;

type Make = Box<dyn FnMut() -> Result<Box<dyn Executable>, BackendError> + Send>;

/// The executable that is not in use, and how the one with taps is made.
#[derive(Default)]
pub(super) struct Routed {
    make: Option<Make>,
    other: Option<Box<dyn Executable>>,
    is_in_use: bool,
}

/// Keeps the experts' ids of a step.
#[derive(Default)]
struct Sink {
    /// Layer, width of a row, ids.
    layers: Vec<(usize, usize, Vec<u32>)>,
}

impl Observer for Sink {
    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        if let (Some(layer), Stage::MoeTopkIds) = (tap.layer, tap.stage) {
            let width = tap.tensor.shape.last().copied().unwrap_or(1).max(1);
            // Ids are below 2^24, so that a float holds them.
            let ids = tap.tensor.floats().iter().map(|id| *id as u32).collect();
            self.layers.push((layer, width, ids));
        }
        Ok(())
    }
}

impl Sequences {
    /// With a way to make an executable of the same graph that has the taps of the experts' ids ([`Stage::MoeTopkIds`]).
    #[must_use]
    pub fn with_routing(
        mut self,
        make: impl FnMut() -> Result<Box<dyn Executable>, BackendError> + Send + 'static,
    ) -> Sequences {
        self.routed.make = Some(Box::new(make));
        self
    }

    /// Makes what tells experts, where it is not there yet.
    ///
    /// # Errors
    /// [`BackendError::Input`] without [`Sequences::with_routing`]; what compiling reports.
    pub fn prepare_routing(&mut self) -> Result<(), BackendError> {
        if self.routed.is_in_use || self.routed.other.is_some() {
            return Ok(());
        }
        let Some(make) = &mut self.routed.make else {
            return Err(BackendError::Input("experts are not told: nothing was compiled for it".into()));
        };
        self.routed.other = Some(make()?);
        Ok(())
    }

    /// Puts the executable with or without taps to use.
    pub(super) fn take_routed(&mut self, is_wanted: bool) -> Result<(), BackendError> {
        if is_wanted {
            self.prepare_routing()?;
        }
        if self.routed.is_in_use != is_wanted
            && let Some(other) = &mut self.routed.other
        {
            std::mem::swap(other, &mut self.executable);
            self.routed.is_in_use = is_wanted;
        }
        Ok(())
    }

    /// As [`Sequences::step`], and the experts that the last row of each feed chose, in the order of `feeds`.
    ///
    /// # Errors
    /// As [`Sequences::step`] and [`Sequences::prepare_routing`].
    pub fn step_routed(&mut self, feeds: &[Feed<'_>]) -> Result<Vec<Experts>, BackendError> {
        self.take_routed(true)?;
        let mut sink = Sink::default();
        self.run(feeds, Some(&mut sink))?;
        self.executable.wait()?;
        let (mut row, mut logits_row, mut experts) = (0, 0, Vec::with_capacity(feeds.len()));
        let all_rows: usize = feeds.iter().map(|feed| feed.tokens.len()).sum();
        for feed in feeds {
            row += feed.tokens.len();
            logits_row += usize::from(feed.wants_logits);
            let of_layer = |(layer, width, ids): &(usize, usize, Vec<u32>)| {
                // The last layers of some models compute the rows of logits alone.
                let at = if ids.len() == all_rows * width { row } else { logits_row }.checked_sub(1)?;
                Some((*layer, ids.get(at * width..(at + 1) * width)?.to_vec()))
            };
            experts.push(sink.layers.iter().filter_map(of_layer).collect());
        }
        Ok(experts)
    }
}
