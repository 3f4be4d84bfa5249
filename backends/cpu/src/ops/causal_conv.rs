//! CausalConv: each worker takes channels, and walks their tokens in order, sequence after sequence.

use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output, StateOutput};
use moe_run_graph::ir::ActivationFn;

/// Channels in a chunk.
pub const CHUNK_CHANNELS: usize = 64;

/// The launch.
pub struct CausalConv {
    /// [T, C].
    pub x: Input,
    /// The same shape, shared by [`CHUNK_CHANNELS`] columns.
    pub out: Output,
    /// [C, k].
    pub weight: Box<[f32]>,
    /// [C].
    pub bias: Option<Box<[f32]>>,
    /// Of the sum.
    pub activation: Option<ActivationFn>,
    /// The last inputs of each sequence, [C, k − 1], oldest first, shared by the elements of [`CHUNK_CHANNELS`].
    pub state: StateOutput,
    /// k − 1.
    pub kept: usize,
}

impl Launch for CausalConv {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        let channels = self.x.width();
        for mut chunk in worker.shares(channels.div_ceil(CHUNK_CHANNELS)) {
            let columns = chunk.range(CHUNK_CHANNELS, channels);
            for run in step.runs {
                let place = step.sequences[run.sequence].place as usize;
                for token in run.rows.clone() {
                    let x = &step.row(self.x, token)[columns.clone()];
                    let (out, past) = chunk.row_and_state(step, (&self.out, token), (&self.state, place));
                    if step.position(token) == 0 {
                        past.fill(0.0);
                    }
                    match self.activation {
                        None => self.token(columns.start, x, past, out),
                        Some(activation) => {
                            let sums = &mut [0.0; CHUNK_CHANNELS][..x.len()];
                            self.token(columns.start, x, past, sums);
                            step.kernels.activate(activation, sums, out);
                        }
                    }
                }
            }
        }
    }
}

impl CausalConv {
    /// The sums of one token's channels from `first` on, whose inputs join `past`.
    fn token(&self, first: usize, x: &[f32], past: &mut [f32], out: &mut [f32]) {
        let kept = self.kept;
        for (c, (x, out)) in x.iter().zip(out).enumerate() {
            let past = &mut past[c * kept..][..kept];
            let w = &self.weight[(first + c) * (kept + 1)..][..kept + 1];
            let sum = past.iter().chain([x]).zip(w).fold(0.0f32, |sum, (x, w)| w.mul_add(*x, sum));
            *out = self.bias.as_ref().map_or(sum, |b| sum + b[first + c]);
            past.rotate_left(1);
            past[kept - 1] = *x;
        }
    }
}
