//! RMSNorm as a launch of its own, of whole rows or of each head.

use super::{Launch, Scratch, Step};
use crate::memory::Val;
use crate::pool::Worker;

/// The launch.
pub struct RmsNorm {
    /// [.., heads · weight.len()].
    pub x: Val,
    /// The same shape.
    pub out: Val,
    /// w.
    pub weight: Box<[f32]>,
    /// Added to the mean square.
    pub eps: f32,
}

impl Launch for RmsNorm {
    fn run(&self, step: &Step<'_>, worker: &Worker<'_>, _: &mut Scratch) {
        for row in worker.chunks(self.x.lead.of(step.sizes)) {
            // SAFETY: the row is this chunk's; the input is older than the last barrier.
            unsafe {
                let out = step.arena.rows_mut(self.out, row..row + 1);
                step.kernels.rms_norm(step.arena.rows(self.x, row..row + 1), &self.weight, self.eps, out);
            }
        }
    }
}
