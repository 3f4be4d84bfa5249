//! CompressedAttention: a token's heads, up to 16 of them, over tiles of the keys that the token sees, gathered from the
//! window and the entries. Keys are decoded once for the heads of a task; softmax on the run is attention's, so that tiles add
//! up to the bits of the definition's one pass.

use super::attention::{TASK_HEADS, TILE_KEYS, soften};
use super::{Launch, Scratch, Step};
use crate::kernels::{Lanes, PANEL_ROWS, STEP_ELEMS, TILE_TOKENS};
use crate::pool::Worker;
use crate::share::{Input, Output, StateInput};
use moe_run_graph::ir::CompressedAttentionAttrs;
use moe_run_runtime::executable::StepSequence;
use moe_run_runtime::exp::{NO_SHIFT, softmax_factor};

/// The launch.
pub struct CompressedAttention {
    /// Heads, window, ratio.
    pub attrs: CompressedAttentionAttrs,
    /// [H].
    pub sinks: Option<Box<[f32]>>,
    /// [T, H·d].
    pub q: Input,
    /// Keys, which are values.
    pub key: StateInput,
    /// Entries, at the positions that complete them.
    pub entry: StateInput,
    /// Which of them are seen [T, S].
    pub mask: Option<Input>,
    /// [T, H·d], shared by rows and [`TASK_HEADS`] heads, or all where they are fewer.
    pub out: Output,
}

/// A worker's buffers.
struct Tile {
    /// Rows of keys as the states hold them.
    bytes: Vec<u8>,
    /// Queries `[row / 8][k][row % 8]`, scaled.
    q: Vec<f32>,
    /// `[key][d]`.
    values: Vec<f32>,
    /// `[row][key]`.
    scores: Vec<f32>,
    /// The power of two that each row's exponentials are taken under, and their sum.
    shift: Vec<f32>,
    sum: Vec<f64>,
}

impl Launch for CompressedAttention {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, scratch: &mut Scratch) {
        let CompressedAttentionAttrs { num_attention_heads: heads, head_dim: d, .. } = self.attrs;
        let (tokens, block) = (step.sizes.tokens, TASK_HEADS.min(heads));
        let mut tile = Tile {
            bytes: vec![0; TILE_KEYS * step.state.row_bytes(self.key.index())],
            q: vec![0.0; block * d],
            values: vec![0.0; TILE_KEYS * d],
            scores: vec![0.0; block * TILE_KEYS],
            shift: vec![0.0; block],
            sum: vec![0.0; block],
        };
        let mut seen = Vec::new();
        for mut chunk in worker.shares(tokens * heads.div_ceil(block)) {
            let (token, first) = (chunk.number() % tokens, chunk.number() / tokens * block);
            self.see(step, token, &mut seen);
            let out = chunk.row_mut(step, &self.out, token);
            let run = step.runs.iter().find(|run| run.rows.contains(&token));
            let Some(run) = run else { unreachable!("token {token} of no sequence") };
            self.task(step, &step.sequences[run.sequence], token, first, &seen, &mut tile, scratch, out);
        }
    }
}

impl CompressedAttention {
    /// The keys that a token sees: of which state, and at which position.
    fn see(&self, step: &Step<'_>, token: usize, seen: &mut Vec<(StateInput, usize)>) {
        let position = step.position(token);
        let mask = self.mask.map(|mask| step.row(mask.with_width(step.sizes.cached), token));
        let entries = (0..self.attrs.entries(position)).map(|i| self.attrs.entry(i));
        let entries = entries.filter(|p| mask.is_none_or(|mask| mask[*p] != 0.0));
        seen.clear();
        seen.extend(self.attrs.near(position).map(|p| (self.key, p)));
        seen.extend(entries.map(|p| (self.entry, p)));
    }

    /// Heads from `first` on of a token, as many as `out` has.
    #[allow(clippy::too_many_arguments)]
    fn task(
        &self,
        step: &Step<'_>,
        sequence: &StepSequence<'_>,
        token: usize,
        first: usize,
        seen: &[(StateInput, usize)],
        tile: &mut Tile,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let d = self.attrs.head_dim;
        let rows = out.len() / d;
        let row_bytes = step.state.row_bytes(self.key.index());
        let q = &step.row(self.q, token)[first * d..][..rows * d];
        for (row, x) in q.chunks_exact(d).enumerate() {
            let width = TILE_TOKENS.min(rows - row / TILE_TOKENS * TILE_TOKENS);
            let tile = &mut tile.q[row / TILE_TOKENS * TILE_TOKENS * d..][..width * d];
            for (x, to) in x.iter().zip(tile.chunks_exact_mut(width)) {
                to[row % TILE_TOKENS] = x * self.attrs.scale;
            }
        }
        out.fill(0.0);
        tile.shift.fill(NO_SHIFT);
        tile.sum.fill(0.0);
        for keys in seen.chunks(TILE_KEYS) {
            for ((state, position), to) in keys.iter().zip(tile.bytes.chunks_exact_mut(row_bytes)) {
                let slot = sequence.slot(*position);
                to.copy_from_slice(step.cached(*state, 0, slot..slot + 1));
            }
            let bytes = &tile.bytes[..keys.len() * row_bytes];
            step.state.decode_rows(step.kernels, self.key.index(), bytes, &mut tile.values[..keys.len() * d]);
            self.score(step, tile, keys.len(), rows, scratch);
            for (row, out) in out.chunks_exact_mut(d).enumerate() {
                let scores = &mut tile.scores[row * TILE_KEYS..][..keys.len()];
                let (shift, sum) = (&mut tile.shift[row], &mut tile.sum[row]);
                soften(step.kernels, scores, 0..keys.len(), None, None, shift, sum, out);
            }
            step.kernels.weigh(&tile.scores, TILE_KEYS, rows, &tile.values[..keys.len() * d], d, out);
        }
        for (row, out) in out.chunks_exact_mut(d).enumerate() {
            let sink = self.sinks.as_ref().map(|sinks| sinks[first + row]);
            step.kernels.scale(softmax_factor(tile.sum[row], tile.shift[row], sink), out);
        }
    }

    /// Scores of a tile's keys, 16 of them at a time; what stands behind the last is not used.
    fn score(&self, step: &Step<'_>, tile: &mut Tile, keys: usize, rows: usize, scratch: &mut Scratch) {
        let d = self.attrs.head_dim;
        let (format, stride) = (step.state.format(), step.state.row_bytes(self.key.index()));
        for panel in 0..keys.div_ceil(PANEL_ROWS) {
            let mut sums = [Lanes([0.0; PANEL_ROWS]); TASK_HEADS];
            for k in (0..d).step_by(STEP_ELEMS) {
                let elems = STEP_ELEMS.min(d - k);
                let bytes = &tile.bytes[panel * PANEL_ROWS * stride..][step.state.bytes_of(k)..];
                let (unpacked, wide) = (&mut scratch.panel, &mut scratch.wide);
                step.kernels.unpack_f32(format, bytes, stride, PANEL_ROWS, elems, unpacked, wide);
                for (i, sums) in sums[..rows].chunks_mut(TILE_TOKENS).enumerate() {
                    let q = &tile.q[i * TILE_TOKENS * d..][k * sums.len()..][..elems * sums.len()];
                    step.kernels.mul_f32(&wide.w[..elems], q, sums);
                }
            }
            for (row, sums) in sums[..rows].iter().enumerate() {
                let to = &mut tile.scores[row * TILE_KEYS + panel * PANEL_ROWS..];
                let count = PANEL_ROWS.min(TILE_KEYS - panel * PANEL_ROWS);
                to[..count].copy_from_slice(&sums.0[..count]);
            }
        }
    }
}
