//! CausalConv: each worker takes channels, and walks their tokens in order, sequence after sequence.

use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output, StateOutput};
use moe_run_graph::ir::ActivationFn;

/// Channels in a chunk.
pub const CHUNK_CHANNELS: usize = 256;

/// The launch.
pub struct CausalConv {
    /// [T, C].
    pub x: Input,
    /// The same shape, shared by [`CHUNK_CHANNELS`] columns.
    pub out: Output,
    /// Taps of the channels of each chunk, [k, channels], one chunk behind the other.
    pub taps: Box<[f32]>,
    /// [C].
    pub bias: Option<Box<[f32]>>,
    /// Of the sum.
    pub activation: Option<ActivationFn>,
    /// The last inputs of each sequence, [C, k − 1], oldest first, shared by the elements of [`CHUNK_CHANNELS`].
    pub state: StateOutput,
    /// k − 1.
    pub kept: usize,
}

impl CausalConv {
    /// Taps by chunks, from w [C, k].
    pub fn taps(weight: &[f32], k: usize) -> Box<[f32]> {
        let chunks = weight.chunks(CHUNK_CHANNELS * k);
        chunks.flat_map(|w| (0..k).flat_map(move |tap| w.iter().skip(tap).step_by(k).copied())).collect()
    }

    /// Floats that a worker needs: a chunk's past, and the sums in front of an activation.
    pub fn scratch_elems(kept: usize) -> usize {
        (kept + 1) * CHUNK_CHANNELS
    }
}

impl Launch for CausalConv {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, scratch: &mut Scratch) {
        let (channels, kept) = (self.x.width(), self.kept);
        for mut chunk in worker.shares(channels.div_ceil(CHUNK_CHANNELS)) {
            let columns = chunk.range(CHUNK_CHANNELS, channels);
            let width = columns.len();
            let taps = &self.taps[columns.start * (kept + 1)..columns.end * (kept + 1)];
            let bias = self.bias.as_ref().map(|b| &b[columns.clone()]);
            let (past, sums) = scratch.normed.split_at_mut(kept * CHUNK_CHANNELS);
            let (past, sums) = (&mut past[..kept * width], &mut sums[..width]);
            for run in step.runs {
                let (place, tokens) = (step.sequences[run.sequence].place as usize, run.rows.clone());
                // The state has the inputs of a channel side by side; here the channels are.
                let (_, state) = chunk.row_and_state(step, (&self.out, tokens.start), (&self.state, place));
                for (i, x) in past.iter_mut().enumerate() {
                    *x = state[i % width * kept + i / width];
                }
                for token in tokens.clone() {
                    if step.position(token) == 0 {
                        past.fill(0.0);
                    }
                    let x = &step.row(self.x, token)[columns.clone()];
                    let out = chunk.row_mut(step, &self.out, token);
                    match self.activation {
                        None => step.kernels.causal_conv(taps, bias, past, x, out),
                        Some(activation) => {
                            step.kernels.causal_conv(taps, bias, past, x, sums);
                            step.kernels.activate(activation, sums, out);
                        }
                    }
                }
                let (_, state) = chunk.row_and_state(step, (&self.out, tokens.start), (&self.state, place));
                for (i, x) in past.iter().enumerate() {
                    state[i % width * kept + i / width] = *x;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_stand_channel_by_channel_in_their_chunk() {
        let (channels, k) = (CHUNK_CHANNELS + 3, 4);
        let weight: Vec<f32> = (0..channels * k).map(|i| i as f32).collect();
        let taps = CausalConv::taps(&weight, k);
        for (channel, tap) in
            [(0, 0), (5, 3), (CHUNK_CHANNELS - 1, 2), (CHUNK_CHANNELS, 0), (channels - 1, 3)]
        {
            let first = channel / CHUNK_CHANNELS * CHUNK_CHANNELS;
            let width = CHUNK_CHANNELS.min(channels - first);
            let at = first * k + tap * width + channel - first;
            assert_eq!(taps[at], weight[channel * k + tap], "channel {channel}, tap {tap}");
        }
    }
}
