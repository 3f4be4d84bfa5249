//! Which row of a step's logits is meant, and how wide it is.

use moe_run_graph::ir::{DType, Dim, StepSizes, ValueId};
use moe_run_graph::passes::Plan;

/// A row of the last step's logits, which is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogitsRow {
    /// The class of the step.
    pub class: usize,
    /// Its sizes.
    pub sizes: StepSizes,
    /// The logits.
    pub value: ValueId,
    /// Which of its rows.
    pub row: usize,
    /// Elements of a row.
    pub width: usize,
    /// The first so many may be chosen.
    pub choosable: usize,
}

impl LogitsRow {
    /// A row of a step; `None` where the graph's first output is no logits.
    #[must_use]
    pub fn of(plan: &Plan, class: usize, sizes: StepSizes, row: usize) -> Option<LogitsRow> {
        let value = plan.graph.value(*plan.graph.outputs.first()?);
        match value.shape.0[..] {
            [Dim::LogitsRows, Dim::Fixed(width)] if value.dtype == DType::F32 => {
                let choosable = plan.graph.choosable(width);
                Some(LogitsRow { class, sizes, value: value.id, row, width, choosable })
            }
            _ => None,
        }
    }

    /// What may be chosen from, of the words of all rows.
    pub(super) fn choosable_of<'w>(&self, words: &'w [u32]) -> &'w [f32] {
        &self.of_words(words)[..self.choosable]
    }

    pub(super) fn of_words<'w>(&self, words: &'w [u32]) -> &'w [f32] {
        let rows: &[f32] = bytemuck::cast_slice(words);
        &rows[self.row * self.width..][..self.width]
    }
}
