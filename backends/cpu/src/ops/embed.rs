//! Embed: rows of the table, decoded, times a scale where there is one: ids [T] → [T, D].

use super::weights::Matrix;
use super::{Launch, Scratch, Step};
use crate::memory::Val;
use crate::pool::Worker;

/// The launch.
pub struct Embed {
    /// [vocab, D].
    pub table: Matrix,
    /// Multiplies each element.
    pub scale: Option<f32>,
    /// [T].
    pub ids: Val,
    /// [T, D].
    pub out: Val,
}

impl Launch for Embed {
    fn run(&self, step: &Step<'_>, worker: &Worker<'_>, _: &mut Scratch) {
        for token in worker.chunks(step.sizes.tokens) {
            // SAFETY: the row is this chunk's; ids are older than the step.
            unsafe {
                let id = step.arena.ids(self.ids, token..token + 1)[0] as usize;
                let out = step.arena.rows_mut(self.out, token..token + 1);
                self.table.format.decode_row(self.table.row(id), out);
                if let Some(scale) = self.scale {
                    out.iter_mut().for_each(|x| *x *= scale);
                }
            }
        }
    }
}
