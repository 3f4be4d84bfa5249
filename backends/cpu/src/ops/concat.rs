//! The elements of each head of two values, side by side.

use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output};

/// The launch.
pub struct Concat {
    /// [.., heads · n].
    pub a: Input,
    /// [.., heads · m].
    pub b: Input,
    /// [.., heads · (n + m)].
    pub out: Output,
    /// Heads in a row.
    pub heads: usize,
}

impl Launch for Concat {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        let (n, m) = (self.a.width() / self.heads, self.b.width() / self.heads);
        for mut chunk in worker.shares(self.out.rows(step.sizes)) {
            let row = chunk.number();
            let heads = step.row(self.a, row).chunks_exact(n).zip(step.row(self.b, row).chunks_exact(m));
            for ((a, b), out) in heads.zip(chunk.row_mut(step, &self.out, row).chunks_exact_mut(n + m)) {
                out[..n].copy_from_slice(a);
                out[n..].copy_from_slice(b);
            }
        }
    }
}
