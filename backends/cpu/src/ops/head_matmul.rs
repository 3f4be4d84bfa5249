//! Each head through a matrix of its own, transposed: sums of the matrix's rows. (As it stands, HeadMatMul is an expert
//! matmul whose experts are the heads: `matmul.rs`.)

use super::weights::Matrix;
use super::{Launch, Scratch, Step};
use crate::kernels::wide_flat_mut;
use crate::pool::Worker;
use crate::share::{Input, Output};

/// Tokens in a chunk, for which a row of the matrix is decoded once.
pub const CHUNK_TOKENS: usize = 16;

/// x [T, H · rows], W [H, rows, columns] → [T, H · columns].
pub struct TransposedHeads {
    /// W.
    pub matrix: Matrix,
    /// H.
    pub heads: usize,
    /// The input.
    pub x: Input,
    /// The result, shared by tiles of [`CHUNK_TOKENS`] rows and a head's columns.
    pub out: Output,
}

impl TransposedHeads {
    /// Sums in f64 that a worker holds at once.
    pub fn sums_elems(&self) -> usize {
        CHUNK_TOKENS * self.matrix.inner
    }
}

impl Launch for TransposedHeads {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, scratch: &mut Scratch) {
        let Matrix { inner, rows, .. } = self.matrix;
        let tokens = step.sizes.tokens;
        let sums = &mut wide_flat_mut(&mut scratch.combined)[..self.sums_elems()];
        let decoded = &mut scratch.normed[..inner];
        let stretches = tokens.div_ceil(CHUNK_TOKENS);
        for mut chunk in worker.shares(self.heads * stretches) {
            let (head, first) = (chunk.number() / stretches, chunk.number() % stretches * CHUNK_TOKENS);
            let stretch = first..(first + CHUNK_TOKENS).min(tokens);
            sums.fill(0.0);
            for row in 0..rows {
                self.matrix.format.decode_row(self.matrix.expert_row(head, row), decoded);
                for (token, sums) in stretch.clone().zip(sums.chunks_exact_mut(inner)) {
                    let x = step.row(self.x, token)[head * rows + row];
                    step.kernels.add_scaled_wide(x, decoded, sums);
                }
            }
            for (token, sums) in stretch.zip(sums.chunks_exact(inner)) {
                step.kernels.narrow(sums, chunk.row_mut(step, &self.out, token));
            }
        }
    }
}
