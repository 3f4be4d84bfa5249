//! A function of each element.

use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output};
use moe_run_graph::ir::PointwiseFn;

/// The launch.
pub struct Pointwise {
    /// Which function.
    pub function: PointwiseFn,
    /// [.., width].
    pub x: Input,
    /// The same shape, shared by tiles of one row and [`CHUNK_ELEMS`] columns.
    pub out: Output,
}

/// Elements of a row that are one chunk: a row of logits alone keeps every worker busy.
pub const CHUNK_ELEMS: usize = 4096;

impl Launch for Pointwise {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        let rows = self.x.rows(step.sizes);
        for mut chunk in worker.shares(rows * self.x.width().div_ceil(CHUNK_ELEMS)) {
            let row = chunk.number() % rows;
            let (out, columns) = chunk.part_mut(step, &self.out, row);
            step.kernels.pointwise(self.function, &step.row(self.x, row)[columns], out);
        }
    }
}
