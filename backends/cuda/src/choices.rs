//! What steps choose from their logits, and where the host reads it: the bookkeeping of `choose`.

use super::device;
use super::driver::{Driver, Mailbox};
use super::ops;
use moe_run_graph::ir::{DType, Dim, Graph, StepSizes};
use moe_run_runtime::choice::MAX_CANDIDATES;
use moe_run_runtime::error::BackendError;
use std::sync::Arc;

/// A rank and an id.
pub(super) const PAIR_BYTES: usize = 8;

/// What was chosen from the last step's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub row: usize,
    /// 1: the best token, which is also where the next step reads it.
    pub count: usize,
}

/// What steps choose, and where the host reads it.
pub(super) struct Choices {
    /// Behind each step with one row of logits, from 1 on.
    expected: usize,
    /// The most that the kernels choose from the graph's output: 0 where that is no logits.
    most: usize,
    /// The kernels for one, and those for several, have been launched.
    launched: [bool; 2],
    /// Of the last step.
    pub made: Option<Choice>,
    pub mailbox: Box<dyn Mailbox>,
    /// What the last step took as its token; its own choice goes to the other mailbox.
    pub taken: Box<dyn Mailbox>,
    pub is_taken: bool,
}

impl Choices {
    pub fn new(driver: &Arc<dyn Driver>, graph: &Graph) -> Result<Choices, BackendError> {
        let mailbox = || {
            let made = driver.mailbox(PAIR_BYTES * MAX_CANDIDATES);
            made.map_err(|e| device::error(&driver.info().name, e))
        };
        Ok(Choices {
            expected: 1,
            most: most(graph),
            launched: [false; 2],
            made: None,
            mailbox: mailbox()?,
            taken: mailbox()?,
            is_taken: false,
        })
    }

    pub fn expect(&mut self, count: usize) {
        self.expected = count.clamp(1, MAX_CANDIDATES);
    }

    /// How many a step chooses; 0 for none.
    pub fn behind(&self, sizes: StepSizes) -> usize {
        if sizes.logits_rows == 1 && self.expected <= self.most { self.expected } else { 0 }
    }

    /// Whether the kernels that choose so many have been launched: what was not cannot be recorded.
    pub fn can_be_recorded(&self, count: usize) -> bool {
        count == 0 || self.launched[usize::from(count > 1)]
    }

    pub fn were_launched(&mut self, count: usize) {
        if count > 0 {
            self.launched[usize::from(count > 1)] = true;
        }
    }

    /// A step begins: the last one's choice is its token, or nothing.
    pub fn begin(&mut self, takes: bool) {
        if takes {
            std::mem::swap(&mut self.mailbox, &mut self.taken);
        }
        self.is_taken = takes;
        self.made = None;
    }
}

/// The kernels that choose.
pub(super) const KERNELS: [&str; 4] = ["argmax_part", "argmax_final", "top_part", "top_final"];

/// The most that the kernels choose from a graph's output: 0 where that is no logits.
pub(super) fn most(graph: &Graph) -> usize {
    let output = graph.outputs.first().map(|id| graph.value(*id));
    match output.map(|value| (value.shape.0.as_slice(), value.dtype)) {
        Some(([Dim::LogitsRows, Dim::Fixed(width)], DType::F32)) => match graph.choosable(*width) {
            0 => 0,
            width if top_parts(width).is_none() => 1,
            _ => MAX_CANDIDATES,
        },
        _ => 0,
    }
}

/// Blocks of the candidates' first step; `None` where there are too many logits.
pub(super) fn top_parts(width: usize) -> Option<usize> {
    let parts = width.div_ceil(ops::TOP_PART_ELEMS).max(ops::ARGMAX_PARTS.min(width.div_ceil(1024)));
    (parts <= ops::ARGMAX_PARTS).then_some(parts)
}

/// What a choice is called in errors.
pub(super) fn choice_name(count: usize) -> &'static str {
    if count == 1 { "argmax" } else { "candidates" }
}
