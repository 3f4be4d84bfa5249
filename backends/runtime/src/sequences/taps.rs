//! Steps that tell what taps hold: the same graph, compiled once more with the taps that are asked for.
//!
//! Taps change nothing, so the values are those of any other step; only what looks on is slower, and made when it is first
//! wanted. Absent: stages whose rows are as long as what is cached ([`has_rows`]).

use super::{Feed, Sequences};
use crate::error::BackendError;
use crate::executable::{Executable, Observer, TapValue};
use moe_run_graph::ir::{RowAxis, Stage};
use std::collections::BTreeSet;

/// Taps by stage and layer; a stage of the whole model has none.
pub type Taps = BTreeSet<(Stage, Option<usize>)>;

/// The experts that a row chose, by layer, in the order of the layers.
pub type Experts = Vec<(usize, Vec<u32>)>;

/// What a tap held for rows of one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct TappedRows {
    /// The stage.
    pub stage: Stage,
    /// Its layer.
    pub layer: Option<usize>,
    /// A row's shape: the axes behind that of the rows.
    pub row_shape: Vec<usize>,
    /// Where the first row stands in its sequence; the others follow it.
    pub first_position: usize,
    /// Row by row. Ids of experts are below 2^24, so that a float holds them.
    pub values: Vec<f32>,
}

impl TappedRows {
    /// Elements of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.row_shape.iter().product::<usize>().max(1)
    }

    /// Rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.values.len() / self.width()
    }

    /// Adds rows that follow; those of another position replace all.
    pub fn extend(&mut self, more: TappedRows) {
        match more.first_position == self.first_position + self.rows() {
            true => self.values.extend(more.values),
            false => *self = more,
        }
    }
}

/// The experts among a step's rows of one sequence: those that its last row chose.
#[must_use]
pub fn last_experts(tapped: &[TappedRows]) -> Experts {
    let of_layer = |rows: &TappedRows| {
        let layer = rows.layer.filter(|_| rows.stage == Stage::MoeTopkIds)?;
        let last = rows.values.chunks_exact(rows.width()).next_back()?;
        Some((layer, last.iter().map(|id| *id as u32).collect()))
    };
    tapped.iter().filter_map(of_layer).collect()
}

/// Whether a stage has a row for each token, or each row of logits. Scores have one for each head, too, as long as what is
/// cached, of all sequences of a step.
#[must_use]
pub fn has_rows(stage: Stage) -> bool {
    RowAxis::of(stage) != RowAxis::HeadsTokensCached
}

type Make = Box<dyn FnMut(&Taps) -> Result<Box<dyn Executable>, BackendError> + Send>;

/// The executable that is not in use, and how one with taps is made.
#[derive(Default)]
pub(super) struct Tapped {
    make: Option<Make>,
    other: Option<Box<dyn Executable>>,
    /// Of the one with taps.
    taps: Taps,
    is_in_use: bool,
}

/// Keeps what the taps of a step hold.
struct Sink<'a> {
    wanted: &'a Taps,
    /// Each with its rows.
    values: Vec<(TappedRows, usize)>,
}

impl Observer for Sink<'_> {
    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        if self.wanted.contains(&(tap.stage, tap.layer)) && has_rows(tap.stage) {
            let (rows, row_shape) = tap.tensor.shape.split_first().map_or((1, &[][..]), |(r, s)| (*r, s));
            let (stage, layer, row_shape) = (tap.stage, tap.layer, row_shape.to_vec());
            let values = tap.tensor.floats().to_vec();
            self.values.push((TappedRows { stage, layer, row_shape, first_position: 0, values }, rows));
        }
        Ok(())
    }
}

impl Sequences {
    /// With a way to make an executable of the same graph that has some taps.
    #[must_use]
    pub fn with_taps(
        mut self,
        make: impl FnMut(&Taps) -> Result<Box<dyn Executable>, BackendError> + Send + 'static,
    ) -> Sequences {
        self.tapped.make = Some(Box::new(make));
        self
    }

    /// Makes what tells these taps, where it is not there yet. Between steps: the logits of the last one are gone.
    ///
    /// # Errors
    /// [`BackendError::Input`] without [`Sequences::with_taps`]; what compiling reports.
    pub fn prepare_taps(&mut self, taps: &Taps) -> Result<(), BackendError> {
        let Tapped { make, other, taps: made, is_in_use } = &mut self.tapped;
        if (*is_in_use || other.is_some()) && taps.is_subset(made) {
            return Ok(());
        }
        let Some(make) = make else {
            return Err(BackendError::Input("taps are not told: nothing was compiled for it".into()));
        };
        let executable = make(taps)?;
        self.logits_rows = 0;
        made.clone_from(taps);
        match is_in_use {
            true => self.executable = executable,
            false => *other = Some(executable),
        }
        Ok(())
    }

    /// Puts the executable with or without taps to use.
    pub(super) fn use_taps(&mut self, is_wanted: bool) {
        if self.tapped.is_in_use != is_wanted
            && let Some(other) = &mut self.tapped.other
        {
            std::mem::swap(other, &mut self.executable);
            self.tapped.is_in_use = is_wanted;
        }
    }

    /// As [`Sequences::step`], and what these taps hold for the rows of each feed, in the order of `feeds`. A stage of the rows
    /// of logits, and whatever the last layers compute for these alone, has no rows of a feed that wants no logits.
    ///
    /// # Errors
    /// As [`Sequences::step`] and [`Sequences::prepare_taps`].
    pub fn step_tapped(
        &mut self,
        feeds: &[Feed<'_>],
        taps: &Taps,
    ) -> Result<Vec<Vec<TappedRows>>, BackendError> {
        self.prepare_taps(taps)?;
        self.use_taps(true);
        let held: Vec<usize> = feeds.iter().map(|feed| self.tokens(feed.sequence).len()).collect();
        let mut sink = Sink { wanted: taps, values: Vec::new() };
        self.run(feeds, Some(&mut sink))?;
        self.executable.wait()?;
        let all_rows: usize = feeds.iter().map(|feed| feed.tokens.len()).sum();
        let (mut row, mut logits_row) = (0, 0);
        let mut told = Vec::with_capacity(feeds.len());
        for (feed, held) in feeds.iter().zip(held) {
            let (rows, logits_rows) =
                (row..row + feed.tokens.len(), logits_row..logits_row + usize::from(feed.wants_logits));
            (row, logits_row) = (rows.end, logits_rows.end);
            let of_tap = |(tapped, of_step): &(TappedRows, usize)| {
                let (rows, first_position) = match *of_step == all_rows {
                    true => (rows.clone(), held),
                    false => (logits_rows.clone(), held + feed.tokens.len() - 1),
                };
                let width = tapped.width();
                let values = tapped.values.get(rows.start * width..rows.end * width)?.to_vec();
                let TappedRows { stage, layer, row_shape, .. } = tapped;
                let row_shape = row_shape.clone();
                Some(TappedRows { stage: *stage, layer: *layer, row_shape, first_position, values })
            };
            told.push(sink.values.iter().filter_map(of_tap).filter(|rows| !rows.values.is_empty()).collect());
        }
        Ok(told)
    }
}
