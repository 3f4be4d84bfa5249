//! Compress: each worker takes channels, and walks their tokens in order, sequence after sequence.

use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output, StateOutput};
use moe_run_graph::ir::CompressAttrs;

/// Channels in a chunk.
pub const CHUNK_CHANNELS: usize = 32;

/// The launch.
pub struct Compress {
    /// Ratio and overlap.
    pub attrs: CompressAttrs,
    /// [T, c·d].
    pub a: Input,
    /// [T, c·d].
    pub b: Input,
    /// [ratio, c·d].
    pub bias: Box<[f32]>,
    /// [T, d], shared by [`CHUNK_CHANNELS`] columns.
    pub out: Output,
    /// [d, 2 · slots] of each sequence, shared by the elements of [`CHUNK_CHANNELS`].
    pub state: StateOutput,
}

impl Launch for Compress {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        let (channels, wide, slots) = (self.out.width(), self.a.width(), self.attrs.slots());
        let mut places = Vec::new();
        for mut chunk in worker.shares(channels.div_ceil(CHUNK_CHANNELS)) {
            let columns = chunk.range(CHUNK_CHANNELS, channels);
            for run in step.runs {
                let place = step.sequences[run.sequence].place as usize;
                for token in run.rows.clone() {
                    let position = step.position(token);
                    let bias = &self.bias[position % self.attrs.ratio * wide..][..wide];
                    let (a, b) = (step.row(self.a, token), step.row(self.b, token));
                    let (out, state) = chunk.row_and_state(step, (&self.out, token), (&self.state, place));
                    for part in 0..self.attrs.parts() {
                        let (slot, first) = (self.attrs.slot(part, position), part * channels);
                        for (i, state) in (first + columns.start..).zip(state.chunks_exact_mut(2 * slots)) {
                            state[slot] = a[i];
                            state[slots + slot] = b[i] + bias[i];
                        }
                    }
                    if self.attrs.completes(position) {
                        places.clear();
                        places.extend(self.attrs.window(position));
                        step.kernels.window_means(state, slots, &places, out);
                    } else {
                        out.fill(0.0);
                    }
                }
            }
        }
    }
}
