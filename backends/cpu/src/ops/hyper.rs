//! HyperGates and HyperConnect: how residual streams meet a block. The gates of a token are a few numbers, which the
//! definition itself makes.

use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output};
use moe_run_graph::ir::HyperGatesAttrs;
use moe_run_reference::hyper_gates::hyper_gates;

/// pre, post and comb.
pub struct HyperGates {
    /// n, iterations, ε.
    pub attrs: HyperGatesAttrs,
    /// [T, its width].
    pub w: Input,
    /// [3] or [1].
    pub scale: Box<[f32]>,
    /// [its width].
    pub base: Box<[f32]>,
    /// [T, n], [T, n], [T, n·n]: those that anybody wants.
    pub outputs: [Option<Output>; 3],
}

impl Launch for HyperGates {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        let n = self.attrs.streams;
        let mut gates = [vec![0.0; n], vec![0.0; n], vec![0.0; n * n]];
        for mut chunk in worker.shares(self.w.rows(step.sizes)) {
            let row = chunk.number();
            let [pre, post, comb] = &mut gates;
            let w = step.row(self.w, row);
            hyper_gates(w, &self.attrs, &self.scale, &self.base, pre, Some([post, comb]));
            for (to, from) in self.outputs.iter().zip(&gates) {
                if let Some(to) = to {
                    chunk.row_mut(step, to, row).copy_from_slice(from);
                }
            }
        }
    }
}

/// x'_k = post_k·y + Σ_j comb_jk·x_j.
pub struct HyperConnect {
    /// [T, n·D].
    pub x: Input,
    /// [T, D].
    pub y: Input,
    /// [T, n].
    pub post: Input,
    /// [T, n·n].
    pub comb: Input,
    /// [T, n·D], shared by stream and row.
    pub out: Output,
    /// n.
    pub streams: usize,
}

impl Launch for HyperConnect {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        let (rows, n) = (self.out.rows(step.sizes), self.streams);
        for mut chunk in worker.shares(rows * n) {
            let (row, k) = (chunk.number() % rows, chunk.number() / rows);
            let (x, y) = (step.row(self.x, row), step.row(self.y, row));
            let (post, comb) = (step.row(self.post, row), step.row(self.comb, row));
            let out = chunk.row_mut(step, &self.out, row);
            out.fill(0.0);
            step.kernels.add_scaled(post[k], y, out);
            for (j, x) in x.chunks_exact(y.len()).enumerate() {
                step.kernels.add_scaled(comb[j * n + k], x, out);
            }
        }
    }
}
