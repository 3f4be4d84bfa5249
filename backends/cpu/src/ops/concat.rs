//! The elements of each head of two values, side by side.

use super::{Launch, Scratch, Step};
use crate::memory::Val;
use crate::pool::Worker;

/// The launch.
pub struct Concat {
    /// [.., heads · n].
    pub a: Val,
    /// [.., heads · m].
    pub b: Val,
    /// [.., heads · (n + m)].
    pub out: Val,
    /// Heads in a row.
    pub heads: usize,
}

impl Launch for Concat {
    fn run(&self, step: &Step<'_>, worker: &Worker<'_>, _: &mut Scratch) {
        let (n, m) = (self.a.width / self.heads, self.b.width / self.heads);
        for row in worker.chunks(self.out.lead.of(step.sizes)) {
            // SAFETY: the row is this chunk's; inputs are older than the last barrier.
            unsafe {
                let (a, b) = (step.arena.rows(self.a, row..row + 1), step.arena.rows(self.b, row..row + 1));
                let out = step.arena.rows_mut(self.out, row..row + 1);
                let heads = a.chunks_exact(n).zip(b.chunks_exact(m));
                for ((a, b), out) in heads.zip(out.chunks_exact_mut(n + m)) {
                    out[..n].copy_from_slice(a);
                    out[n..].copy_from_slice(b);
                }
            }
        }
    }
}
