//! SsmScan: a worker takes heads, and walks their tokens in order, sequence after sequence. A few tokens pass over some rows of
//! a head's state together, while these are in the nearest cache: rows do not mix. Where each element decays by itself, a head is
//! a channel of one row, and a worker takes some of them at once.

use super::{Launch, Scratch, Step};
use crate::kernels::{ScanChannels, ScanToken};
use crate::pool::Worker;
use crate::share::{Input, Output, StateOutput};
use moe_run_graph::ir::{DecayOf, SsmScanAttrs};
use moe_run_runtime::exp::{exp, softplus};

/// Tokens that pass over some rows together.
const TILE: usize = 8;
/// Floats of those rows, about.
const PART_ELEMS: usize = 4096;

/// Channels that a worker takes at once.
pub const CHUNK_CHANNELS: usize = 64;

/// The launch.
pub struct SsmScan {
    /// Shapes.
    pub attrs: SsmScanAttrs,
    /// [T, n·P + 2·G·N].
    pub xbc: Input,
    /// [T, n].
    pub dt: Input,
    /// [T, n·P], shared by heads, or by [`CHUNK_CHANNELS`] where elements decay by themselves.
    pub out: Output,
    /// [n, P, N] of each sequence, shared likewise.
    pub state: StateOutput,
    /// [n], or [n, N].
    pub a: Box<[f32]>,
    /// [n].
    pub d: Box<[f32]>,
    /// [n].
    pub dt_bias: Box<[f32]>,
}

impl SsmScan {
    /// A head decays as a whole.
    fn heads(&self, step: &Step<'_>, worker: &mut Worker<'_>) {
        let (attrs, rows, size) = (&self.attrs, self.attrs.head_dim, self.attrs.state_size);
        let at_once = (PART_ELEMS / size).max(1);
        for mut chunk in worker.shares(attrs.num_heads) {
            let head = chunk.number();
            let b_at = attrs.x_width() + attrs.group(head) * size;
            let c_at = b_at + attrs.group_width();
            for (place, tokens) in step.tiles(TILE) {
                if step.position(tokens.start) == 0 {
                    chunk.row_and_state(step, (&self.out, tokens.start), (&self.state, place)).1.fill(0.0);
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

    /// Each element decays by itself: heads are channels of one row, which all take the same B and C.
    fn channels(&self, step: &Step<'_>, worker: &mut Worker<'_>) {
        let (count, size) = (self.attrs.num_heads, self.attrs.state_size);
        for mut chunk in worker.shares(count.div_ceil(CHUNK_CHANNELS)) {
            let range = chunk.range(CHUNK_CHANNELS, count);
            let (dt_bias, d) = (&self.dt_bias[range.clone()], &self.d[range.clone()]);
            let a = &self.a[range.start * size..range.end * size];
            for (place, tokens) in step.tiles(TILE) {
                if step.position(tokens.start) == 0 {
                    chunk.row_and_state(step, (&self.out, tokens.start), (&self.state, place)).1.fill(0.0);
                }
                for token in tokens {
                    let (xbc, dt) = (step.row(self.xbc, token), &step.row(self.dt, token)[range.clone()]);
                    let mut delta = [0.0; CHUNK_CHANNELS];
                    for ((delta, dt), bias) in delta.iter_mut().zip(dt).zip(dt_bias) {
                        *delta = softplus(dt + bias);
                    }
                    let (b, c) = xbc[count..].split_at(size);
                    let (out, state) = chunk.row_and_state(step, (&self.out, token), (&self.state, place));
                    let of = ScanChannels { delta: &delta[..range.len()], a, d, b, c };
                    step.kernels.scan_channels(of, &xbc[range.clone()], state, out);
                }
            }
        }
    }
}

impl Launch for SsmScan {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        match self.attrs.decay_of {
            DecayOf::Head => self.heads(step, worker),
            DecayOf::Element => self.channels(step, worker),
        }
    }
}
