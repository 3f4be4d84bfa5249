//! The scores and probabilities inside attention, for looking at: recomputed beside the kernel that never holds them.

use super::{Launch, Scratch, Step};
use crate::cpu::memory::Val;
use crate::cpu::pool::Worker;
use moe_run_graph::ir::AttentionAttrs;

/// Positions that a query sees: causal, and no further back than the window.
fn visible(position: usize, attrs: &AttentionAttrs) -> std::ops::Range<usize> {
    attrs.window.map_or(0, |w| (position + 1).saturating_sub(w))..position + 1
}

/// scale · q·k, softly capped: [H, T, S], 0 where the query does not see.
pub struct AttentionScores {
    /// Sizes, scale, window, cap.
    pub attrs: AttentionAttrs,
    /// [T, H · d].
    pub q: Val,
    /// The keys' state.
    pub key: usize,
    /// [H, T, S], from its first word on.
    pub out: Val,
}

impl Launch for AttentionScores {
    fn run(&self, step: &Step<'_>, worker: &Worker<'_>, scratch: &mut Scratch) {
        let (tokens, cached) = (step.sizes.tokens, step.sizes.cached);
        let d = self.attrs.head_dim;
        for row in worker.chunks(self.attrs.num_attention_heads * tokens) {
            let (head, token) = (row / tokens, row % tokens);
            let key = &mut scratch.normed[..d];
            // SAFETY: the row is this chunk's; q and the cache are older than the last barrier.
            unsafe {
                let out = step.arena.rows_mut(Val { width: cached, ..self.out }, row..row + 1);
                let q = &step.arena.rows(self.q, token..token + 1)[head * d..][..d];
                out.fill(0.0);
                for s in visible(step.first_position + token, &self.attrs) {
                    step.state.decode(self.key, head / self.attrs.group_size(), s, key);
                    let score = step.kernels.dot(q, key) * self.attrs.scale;
                    out[s] = self.attrs.soft_cap.map_or(score, |cap| cap * (score / cap).tanh());
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
    pub scores: Val,
    /// [H, T, S].
    pub out: Val,
}

impl Launch for AttentionSoftmax {
    fn run(&self, step: &Step<'_>, worker: &Worker<'_>, _: &mut Scratch) {
        let (tokens, cached) = (step.sizes.tokens, step.sizes.cached);
        for row in worker.chunks(self.attrs.num_attention_heads * tokens) {
            let seen = visible(step.first_position + row % tokens, &self.attrs);
            let sink = self.sinks.as_ref().map_or(f32::NEG_INFINITY, |s| s[row / tokens]);
            // SAFETY: the row is this chunk's; the scores are older than the last barrier.
            unsafe {
                let scores = step.arena.rows(Val { width: cached, ..self.scores }, row..row + 1);
                let out = step.arena.rows_mut(Val { width: cached, ..self.out }, row..row + 1);
                out.fill(0.0);
                let out = &mut out[seen.clone()];
                out.copy_from_slice(&scores[seen]);
                let max = step.kernels.max(out).max(sink);
                let sum = step.kernels.exp_sum(out, max) + (sink - max).exp();
                step.kernels.scale(1.0 / sum, out);
            }
        }
    }
}
