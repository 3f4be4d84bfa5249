//! RMSNorm as a launch of its own, of whole rows or of each head.

use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output};

/// The launch.
pub struct RmsNorm {
    /// [.., heads · weight.len()].
    pub x: Input,
    /// The same shape.
    pub out: Output,
    /// w.
    pub weight: Box<[f32]>,
    /// Added to the mean square.
    pub eps: f32,
}

impl Launch for RmsNorm {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        for mut chunk in worker.shares(self.x.rows(step.sizes)) {
            let row = chunk.number();
            let out = chunk.row_mut(step, &self.out, row);
            step.kernels.rms_norm(step.row(self.x, row), &self.weight, self.eps, out);
        }
    }
}
