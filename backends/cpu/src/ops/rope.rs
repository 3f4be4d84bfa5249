//! RoPE: the table of cosines and sines, and the launch that rotates rows of heads.

use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output};
use moe_run_graph::ir::{RopePairing, RopeSpec};

/// Positions that are computed at once when a step reaches them.
const BLOCK_POSITIONS: usize = 64;

/// Cosines, then sines, for each position; computed in f64 when first needed.
pub struct RopeTable {
    spec: RopeSpec,
    rows: Box<[f32]>,
    filled: usize,
}

impl RopeTable {
    /// A table for `positions` positions, of which none is computed yet (nor its memory touched); `None` where the memory
    /// cannot be had.
    pub fn try_new(spec: RopeSpec, positions: usize) -> Option<RopeTable> {
        let elems = positions.next_multiple_of(BLOCK_POSITIONS).checked_mul(spec.dims)?;
        let rows = bytemuck::allocation::try_zeroed_slice_box(elems).ok()?;
        Some(RopeTable { spec, rows, filled: 0 })
    }

    /// Computes all positions below `end`, which is within the table.
    pub fn fill(&mut self, end: usize) {
        let dims = self.spec.dims;
        let mut pairs = vec![0.0; if self.filled < end { dims } else { 0 }];
        while self.filled < end {
            for _ in 0..BLOCK_POSITIONS {
                self.spec.fill_row(self.filled as u32, &mut pairs);
                let row = &mut self.rows[self.filled * dims..][..dims];
                for i in 0..dims / 2 {
                    (row[i], row[dims / 2 + i]) = (pairs[2 * i], pairs[2 * i + 1]);
                }
                self.filled += 1;
            }
        }
    }

    /// Cosines, then sines, of a position.
    pub fn row(&self, position: usize) -> &[f32] {
        &self.rows[position * self.spec.dims..][..self.spec.dims]
    }
}

/// RoPE as a launch of its own.
pub struct Rope {
    /// [T, heads · head_dim].
    pub x: Input,
    /// The same shape.
    pub out: Output,
    /// Which table.
    pub table: usize,
    /// Which elements are rotated together.
    pub pairing: RopePairing,
    /// Elements of a head.
    pub head_dim: usize,
}

impl Launch for Rope {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        for mut chunk in worker.shares(step.sizes.tokens) {
            let token = chunk.number();
            let out = chunk.row_mut(step, &self.out, token);
            out.copy_from_slice(step.row(self.x, token));
            let cos_sin = step.rope[self.table].row(step.position(token));
            step.kernels.rope(self.pairing, self.head_dim, cos_sin, out);
        }
    }
}
