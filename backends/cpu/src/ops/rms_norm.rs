//! RMSNorm as a launch of its own, of whole rows or of each head.

use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output};

/// The launch.
pub struct RmsNorm {
    /// [.., heads · width].
    pub x: Input,
    /// The same shape.
    pub out: Output,
    /// w, of every head alike or each its own part.
    pub weight: Box<[f32]>,
    /// Elements that are normed together.
    pub width: usize,
    /// Added to the mean square.
    pub eps: f32,
}

impl Launch for RmsNorm {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        for mut chunk in worker.shares(self.x.rows(step.sizes)) {
            let row = chunk.number();
            let (x, out) = (step.row(self.x, row), chunk.row_mut(step, &self.out, row));
            if self.weight.len() == self.width {
                step.kernels.rms_norm(x, &self.weight, self.eps, out);
                continue;
            }
            let heads = x.chunks_exact(self.width).zip(out.chunks_exact_mut(self.width));
            for ((x, out), weight) in heads.zip(self.weight.chunks_exact(self.width).cycle()) {
                step.kernels.rms_norm(x, weight, self.eps, out);
            }
        }
    }
}
