//! The scores and probabilities inside attention, for looking at: recomputed beside the kernel that never holds them.

use super::attention::hide;
use super::{Launch, Scratch, Step};
use crate::kernels::{Lanes, PANEL_ROWS, STEP_ELEMS, TILE_TOKENS};
use crate::pool::Worker;
use crate::share::{Input, Output, StateInput};
use moe_run_graph::ir::AttentionAttrs;
use moe_run_runtime::executable::StepSequence;
use moe_run_runtime::exp::{shift_of, softmax_factor};
use std::ops::Range;

/// Query rows that share the decoding of a panel of keys.
const TASK_ROWS: usize = 64;

/// Positions that a query sees: causal, and no further back than window and chunk.
fn visible(position: usize, attrs: &AttentionAttrs) -> Range<usize> {
    attrs.first_visible(position)..position + 1
}

/// scale · q·k, softly capped: [H, T, S], 0 where the query does not see.
pub struct AttentionScores {
    /// Sizes, scale, window, cap.
    pub attrs: AttentionAttrs,
    /// [T, H · d].
    pub q: Input,
    /// The keys' state.
    pub key: StateInput,
    /// [H, T, S], from its first word on.
    pub out: Output,
}

impl Launch for AttentionScores {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, scratch: &mut Scratch) {
        let group = self.attrs.group_size();
        let per_task = (TASK_ROWS / group).max(1);
        let stretches = step.stretches(per_task);
        for chunk in worker.chunks(self.attrs.num_key_value_heads * stretches) {
            let (sequence, tokens) = step.stretch(per_task, chunk % stretches);
            self.task(step, chunk / stretches, sequence, tokens, scratch);
        }
    }
}

impl AttentionScores {
    /// The rows of the heads that read `kv_head`, for some tokens: the products of the kernel that computes attention,
    /// panels of 16 keys against tiles of 8 query rows.
    fn task(
        &self,
        step: &Step<'_>,
        kv_head: usize,
        sequence: &StepSequence<'_>,
        tokens: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let AttentionAttrs { head_dim: d, scale, soft_cap, .. } = self.attrs;
        let group = self.attrs.group_size();
        let rows = tokens.len() * group;
        // Queries as [row / 8][k][row % 8].
        let mut queries = vec![0.0; rows * d];
        for row in 0..rows {
            let (token, head) = (tokens.start + row / group, kv_head * group + row % group);
            let q = &step.row(self.q, token)[head * d..(head + 1) * d];
            let width = TILE_TOKENS.min(rows - row / TILE_TOKENS * TILE_TOKENS);
            let tile = &mut queries[row / TILE_TOKENS * TILE_TOKENS * d..][..width * d];
            for (x, to) in q.iter().zip(tile.chunks_exact_mut(width)) {
                to[row % TILE_TOKENS] = x * scale;
            }
        }
        let out_row =
            |row: usize| (kv_head * group + row % group) * step.sizes.tokens + tokens.start + row / group;
        // SAFETY: the rows of these heads and tokens are this chunk's, and lent one at a time.
        let out = |row: usize| unsafe { self.out.cached_row_mut(step, out_row(row)) };
        (0..rows).for_each(|row| out(row).fill(0.0));
        let first = visible(step.position(tokens.start), &self.attrs).start / PANEL_ROWS * PANEL_ROWS;
        let end = step.position(tokens.end - 1) + 1;
        let mut sums = vec![Lanes([0.0; PANEL_ROWS]); rows];
        for key in (first..end).step_by(PANEL_ROWS) {
            let slot = step.state.slot(self.key.index(), sequence, key);
            sums.fill(Lanes([0.0; PANEL_ROWS]));
            for k in (0..d).step_by(STEP_ELEMS) {
                let elems = STEP_ELEMS.min(d - k);
                // Slots beyond the step's last are read but not used.
                let bytes = step.cached(self.key, kv_head, slot..slot + PANEL_ROWS);
                let bytes = &bytes[step.state.bytes_of(k)..];
                let (format, stride) = (step.state.format(), step.state.row_bytes(self.key.index()));
                let (panel, wide) = (&mut scratch.panel, &mut scratch.wide);
                step.kernels.unpack_f32(format, bytes, stride, PANEL_ROWS, elems, panel, wide);
                for (tile, sums) in sums.chunks_mut(TILE_TOKENS).enumerate() {
                    let q = &queries[tile * TILE_TOKENS * d..][k * sums.len()..][..elems * sums.len()];
                    step.kernels.mul_f32(&scratch.wide.w[..elems], q, sums);
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                let seen = visible(step.position(tokens.start + row / group), &self.attrs);
                let seen = seen.start.max(key)..seen.end.min(key + PANEL_ROWS);
                if seen.is_empty() {
                    continue;
                }
                let to = &mut out(row)[seen.clone()];
                to.copy_from_slice(&sums.0[seen.start - key..seen.end - key]);
                if let Some(cap) = soft_cap {
                    to.iter_mut().for_each(|s| *s = cap * (*s / cap).tanh());
                }
            }
        }
    }
}

/// scores [H, T, S] → softmax over the visible positions, 0 elsewhere.
pub struct AttentionSoftmax {
    /// Heads and window.
    pub attrs: AttentionAttrs,
    /// [H].
    pub sinks: Option<Box<[f32]>>,
    /// [H, T, S].
    pub scores: Input,
    /// Which positions are seen of those that all else leaves [T, S]; `None`: all.
    pub mask: Option<Input>,
    /// [H, T, S], shared by [`Share::CachedRow`](crate::share::Share).
    pub out: Output,
}

impl Launch for AttentionSoftmax {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        let tokens = step.sizes.tokens;
        let scores = self.scores.with_width(step.sizes.cached);
        for mut chunk in worker.shares(self.attrs.num_attention_heads * tokens) {
            let row = chunk.number();
            let seen = visible(step.position(row % tokens), &self.attrs);
            let sink = self.sinks.as_ref().map(|s| s[row / tokens]);
            let out = chunk.row_mut(step, &self.out, row);
            out.fill(0.0);
            let out = &mut out[seen.clone()];
            out.copy_from_slice(&step.row(scores, row)[seen.clone()]);
            if let Some(mask) = self.mask {
                hide(&step.row(mask.with_width(step.sizes.cached), row % tokens)[seen], out);
            }
            let shift = shift_of(step.kernels.max(out));
            let sum = step.kernels.exp_sum(out, shift);
            step.kernels.scale(softmax_factor(sum, shift, sink), out);
        }
    }
}
