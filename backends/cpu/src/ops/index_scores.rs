//! What an indexer ranks cached positions by: products of all its heads with panels of 16 keys, weighed while they are at hand.

use super::{Launch, Scratch, Step};
use crate::kernels::{Lanes, PANEL_ROWS, STEP_ELEMS, TILE_TOKENS};
use crate::pool::Worker;
use crate::share::{Input, Output, StateInput};
use moe_run_graph::ir::IndexScoresAttrs;
use moe_run_runtime::executable::StepSequence;
use std::ops::Range;

/// Query rows (tokens × heads) that share the decoding of a panel of keys, about.
const TASK_ROWS: usize = 64;
/// Positions of a task: whole panels.
const TASK_POSITIONS: usize = 512;

/// The launch.
pub struct IndexScores {
    /// Heads and their size.
    pub attrs: IndexScoresAttrs,
    /// [T, H·d].
    pub q: Input,
    /// [T, H].
    pub w: Input,
    /// The keys' state.
    pub key: StateInput,
    /// [T, S], from its first word on.
    pub out: Output,
}

impl Launch for IndexScores {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, scratch: &mut Scratch) {
        let per_task = (TASK_ROWS / self.attrs.num_heads).max(1);
        let stretches = step.stretches(per_task);
        for chunk in worker.chunks(stretches * step.sizes.cached.div_ceil(TASK_POSITIONS)) {
            let (sequence, tokens) = step.stretch(per_task, chunk % stretches);
            let first = chunk / stretches * TASK_POSITIONS;
            let positions = first..(first + TASK_POSITIONS).min(step.sizes.cached);
            self.task(step, sequence, tokens, positions, scratch);
        }
    }
}

impl IndexScores {
    fn task(
        &self,
        step: &Step<'_>,
        sequence: &StepSequence<'_>,
        tokens: Range<usize>,
        positions: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let IndexScoresAttrs { num_heads, head_dim: d } = self.attrs;
        // SAFETY: these tokens' columns are this chunk's, and lent one row at a time.
        let out = |token, columns: Range<usize>| unsafe { self.out.cached_part_mut(step, token, columns) };
        tokens.clone().for_each(|token| out(token, positions.clone()).fill(0.0));
        let end = positions.end.min(step.position(tokens.end - 1) + 1);
        if positions.start >= end {
            return;
        }
        let rows = tokens.len() * num_heads;
        // Queries as [row / 8][k][row % 8].
        let mut queries = vec![0.0; rows * d];
        for row in 0..rows {
            let (token, head) = (tokens.start + row / num_heads, row % num_heads);
            let width = TILE_TOKENS.min(rows - row / TILE_TOKENS * TILE_TOKENS);
            let tile = &mut queries[row / TILE_TOKENS * TILE_TOKENS * d..][..width * d];
            let q = &step.row(self.q, token)[head * d..(head + 1) * d];
            for (x, to) in q.iter().zip(tile.chunks_exact_mut(width)) {
                to[row % TILE_TOKENS] = *x;
            }
        }
        let mut sums = vec![Lanes([0.0; PANEL_ROWS]); rows];
        for key in (positions.start..end).step_by(PANEL_ROWS) {
            let slot = step.state.slot(self.key.index(), sequence, key);
            sums.fill(Lanes([0.0; PANEL_ROWS]));
            for k in (0..d).step_by(STEP_ELEMS) {
                let elems = STEP_ELEMS.min(d - k);
                // Slots beyond the step's last are read but not used.
                let bytes = &step.cached(self.key, 0, slot..slot + PANEL_ROWS)[step.state.bytes_of(k)..];
                let (format, stride) = (step.state.format(), step.state.row_bytes(self.key.index()));
                let (panel, wide) = (&mut scratch.panel, &mut scratch.wide);
                step.kernels.unpack_f32(format, bytes, stride, PANEL_ROWS, elems, panel, wide);
                for (tile, sums) in sums.chunks_mut(TILE_TOKENS).enumerate() {
                    let q = &queries[tile * TILE_TOKENS * d..][k * sums.len()..][..elems * sums.len()];
                    step.kernels.mul_f32(&scratch.wide.w[..elems], q, sums);
                }
            }
            for (token, sums) in tokens.clone().zip(sums.chunks_exact(num_heads)) {
                let seen = key..(key + PANEL_ROWS).min(step.position(token) + 1).min(positions.end);
                if seen.is_empty() {
                    continue;
                }
                let scores = step.kernels.weigh_heads(step.row(self.w, token), sums);
                let count = seen.len();
                out(token, seen).copy_from_slice(&scores.0[..count]);
            }
        }
    }
}
