//! Each head times its factor.

use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output};

/// The launch.
pub struct MulHeads {
    /// [.., heads · d].
    pub x: Input,
    /// [.., heads].
    pub factors: Input,
    /// As x.
    pub out: Output,
}

impl Launch for MulHeads {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        let width = self.x.width() / self.factors.width();
        for mut chunk in worker.shares(self.out.rows(step.sizes)) {
            let row = chunk.number();
            let out = chunk.row_mut(step, &self.out, row);
            out.copy_from_slice(step.row(self.x, row));
            for (out, factor) in out.chunks_exact_mut(width).zip(step.row(self.factors, row)) {
                step.kernels.scale(*factor, out);
            }
        }
    }
}
