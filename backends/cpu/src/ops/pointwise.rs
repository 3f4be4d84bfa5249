//! A function of each element.

use super::{Launch, Scratch, Step};
use crate::memory::Val;
use crate::pool::Worker;
use moe_run_graph::ir::PointwiseFn;

/// The launch.
pub struct Pointwise {
    /// Which function.
    pub function: PointwiseFn,
    /// [.., width].
    pub x: Val,
    /// The same shape.
    pub out: Val,
}

/// Elements of a row that are one chunk: a row of logits alone keeps every worker busy.
const CHUNK_ELEMS: usize = 4096;

impl Launch for Pointwise {
    fn run(&self, step: &Step<'_>, worker: &Worker<'_>, _: &mut Scratch) {
        let chunks = self.x.width.div_ceil(CHUNK_ELEMS);
        for chunk in worker.chunks(self.x.lead.of(step.sizes) * chunks) {
            let (row, first) = (chunk / chunks, chunk % chunks * CHUNK_ELEMS);
            let columns = first..(first + CHUNK_ELEMS).min(self.x.width);
            // SAFETY: these columns of the row are this chunk's; the input is older than the last barrier.
            unsafe {
                let x = &step.arena.rows(self.x, row..row + 1)[columns.clone()];
                step.kernels.pointwise(self.function, x, step.arena.part_mut(self.out, row, columns));
            }
        }
    }
}
