//! CausalConv: each worker takes channels, and walks their tokens in order, sequence after sequence.

use super::{Launch, Scratch, Step};
use crate::memory::Val;
use crate::pool::Worker;
use moe_run_graph::ir::ActivationFn;

/// Channels in a chunk.
const CHUNK_CHANNELS: usize = 64;

/// The launch.
pub struct CausalConv {
    /// [T, C].
    pub x: Val,
    /// The same shape.
    pub out: Val,
    /// [C, k].
    pub weight: Box<[f32]>,
    /// [C].
    pub bias: Option<Box<[f32]>>,
    /// Of the sum.
    pub activation: Option<ActivationFn>,
    /// The last inputs of each sequence, [C, k − 1], oldest first.
    pub state: usize,
    /// k − 1.
    pub kept: usize,
}

impl Launch for CausalConv {
    fn run(&self, step: &Step<'_>, worker: &Worker<'_>, _: &mut Scratch) {
        let (channels, kept) = (self.x.width, self.kept);
        for chunk in worker.chunks(channels.div_ceil(CHUNK_CHANNELS)) {
            let columns = chunk * CHUNK_CHANNELS..((chunk + 1) * CHUNK_CHANNELS).min(channels);
            for run in step.runs {
                let place = step.sequences[run.sequence].place as usize;
                let elems = columns.start * kept..columns.end * kept;
                // SAFETY: these channels of every sequence are this chunk's until the next barrier.
                let past = unsafe { step.state.row_mut(self.state, place, elems) };
                if run.first_position == 0 {
                    past.fill(0.0);
                }
                for token in run.rows.clone() {
                    // SAFETY: x is older than the last barrier; these columns of the row are this chunk's.
                    let (x, out) = unsafe {
                        let x = &step.arena.rows(self.x, token..token + 1)[columns.clone()];
                        (x, step.arena.part_mut(self.out, token, columns.clone()))
                    };
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
