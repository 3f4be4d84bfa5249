//! SsmScan: a worker takes heads, and walks their tokens in order, sequence after sequence. A few tokens pass over some rows of
//! a head's state together, while these are in the nearest cache: rows do not mix.

use super::{Launch, Scratch, Step};
use crate::kernels::ScanToken;
use crate::pool::Worker;
use crate::share::{Input, Output, StateOutput};
use moe_run_graph::ir::SsmScanAttrs;
use moe_run_runtime::exp::{exp, softplus};

/// Tokens that pass over some rows together.
const TILE: usize = 8;
/// Floats of those rows, about.
const PART_ELEMS: usize = 4096;

/// The launch.
pub struct SsmScan {
    /// Shapes.
    pub attrs: SsmScanAttrs,
    /// [T, n·P + 2·G·N].
    pub xbc: Input,
    /// [T, n].
    pub dt: Input,
    /// [T, n·P], shared by heads.
    pub out: Output,
    /// [n, P, N] of each sequence, shared by heads.
    pub state: StateOutput,
    /// [n].
    pub a: Box<[f32]>,
    /// [n].
    pub d: Box<[f32]>,
    /// [n].
    pub dt_bias: Box<[f32]>,
}

impl Launch for SsmScan {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        let (attrs, rows, size) = (&self.attrs, self.attrs.head_dim, self.attrs.state_size);
        let at_once = (PART_ELEMS / size).max(1);
        for mut chunk in worker.shares(attrs.num_heads) {
            let head = chunk.number();
            let b_at = attrs.x_width() + attrs.group(head) * size;
            let c_at = b_at + attrs.group_width();
            for run in step.runs {
                let place = step.sequences[run.sequence].place as usize;
                for first in run.rows.clone().step_by(TILE) {
                    let tokens = first..(first + TILE).min(run.rows.end);
                    if step.position(first) == 0 {
                        chunk.row_and_state(step, (&self.out, first), (&self.state, place)).1.fill(0.0);
                    }
                    let mut gates = [(0.0, 0.0); TILE];
                    for (token, gate) in tokens.clone().zip(&mut gates) {
                        let delta = softplus(step.row(self.dt, token)[head] + self.dt_bias[head]);
                        *gate = (delta, exp(self.a[head] * delta));
                    }
                    for part in (0..rows).step_by(at_once).map(|row| row..(row + at_once).min(rows)) {
                        for (token, (delta, decay)) in tokens.clone().zip(gates) {
                            let xbc = step.row(self.xbc, token);
                            let (b, c) = (&xbc[b_at..b_at + size], &xbc[c_at..c_at + size]);
                            let x = &xbc[head * rows..(head + 1) * rows][part.clone()];
                            let (out, state) =
                                chunk.row_and_state(step, (&self.out, token), (&self.state, place));
                            let state = &mut state[part.start * size..part.end * size];
                            let token = ScanToken { delta, decay, d: self.d[head], b, c };
                            step.kernels.ssm_scan(token, x, state, &mut out[part.clone()]);
                        }
                    }
                }
            }
        }
    }
}
