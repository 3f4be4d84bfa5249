//! The best token of a row of logits, or the candidates of a sampler, chosen on the device: kernels/argmax.cu.
//!
//! A step with one row of logits ends in the choice that is expected behind it, recorded with it where it is recorded, and in
//! a copy of what was chosen to page-locked memory: whoever asks waits for that copy alone, and nothing else is read back.
//! What was not expected is chosen when it is asked for. Deliberately absent: anything random, which is the sampler's.

use super::choices::{Choice, PAIR_BYTES, choice_name, top_parts};
use super::compile::CudaRecorder;
use super::driver::{KernelLaunch, Param};
use super::ops::{self, int};
use moe_run_graph::ids::TokenId;
use moe_run_runtime::choice::{MAX_CANDIDATES, best_candidates, nan_logit, not_taken};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::runner::{LogitsRow, Recorder};

/// The rank of a NaN in kernels/argmax.cu.
const RANK_NAN: u32 = u32::MAX;
/// Threads of the candidates' kernels.
const TOP_THREADS: usize = 256;

/// The logit of a rank: the inverse of `rank_of` in kernels/common/top_k.cuh. −0 comes back as 0, with which it ties.
fn logit_of(rank: u32) -> f32 {
    f32::from_bits(if rank & 0x8000_0000 != 0 { rank & 0x7fff_ffff } else { !rank })
}

impl CudaRecorder {
    /// The kernels that choose from a row of logits, `count` of them; one also becomes the token of the next decode step.
    /// None where they cannot choose so many. Rows of a padded vocabulary that no token has are left out of `width`.
    pub fn choice_kernels(&self, (logits, width): (Param, usize), count: usize) -> Vec<KernelLaunch> {
        let launch = |kernel, blocks: usize, threads, shared: usize, params| KernelLaunch {
            kernel,
            grid: [blocks as u32, 1, 1],
            threads,
            shared_bytes: shared as u32,
            params,
        };
        let chosen = self.scratch.top.slice(0, (PAIR_BYTES * count) as u64);
        if count == 1 {
            let parts = width.div_ceil(1024).clamp(1, ops::ARGMAX_PARTS);
            let best = self.scratch.top_parts.slice(0, (PAIR_BYTES * parts) as u64);
            return vec![
                launch("argmax_part", parts, 256, 0, vec![logits, best, int(width)]),
                launch("argmax_final", 1, 64, 0, vec![best, self.next_token(), chosen, int(parts)]),
            ];
        }
        let Some(parts) = top_parts(width) else { return Vec::new() };
        let best = self.scratch.top_parts.slice(0, (PAIR_BYTES * parts * count) as u64);
        // Of `count` threads' shares of the elements, two bytes each: kernels/argmax.cu.
        let list_bytes = |elems: usize| 2 * count * elems.div_ceil(TOP_THREADS);
        let stretch = width.div_ceil(parts);
        let part_bytes = 4 * stretch + list_bytes(stretch);
        let threads = TOP_THREADS as u32;
        vec![
            launch("top_part", parts, threads, part_bytes, vec![logits, best, int(width), int(count)]),
            launch(
                "top_final",
                1,
                threads,
                list_bytes(parts * count),
                vec![best, chosen, int(parts), int(count)],
            ),
        ]
    }

    /// Queues the copy of what kernels have chosen from a row of the last step.
    pub fn post_choice(&mut self, row: usize, count: usize) -> Result<(), BackendError> {
        let parts = [(self.scratch.top.address(), PAIR_BYTES * count)];
        let posted = self.choices.mailbox.post(&parts);
        posted.map_err(|e| self.failed_last(e))?;
        self.choices.made = Some(Choice { row, count });
        Ok(())
    }

    /// Has `count` chosen from a row of the last step, unless that has been done; whether it could be.
    fn choose(
        &mut self,
        row: &LogitsRow,
        count: usize,
        is_made: fn(usize, usize) -> bool,
    ) -> Result<bool, BackendError> {
        if self.choices.made.is_some_and(|made| made.row == row.row && is_made(made.count, count)) {
            return Ok(true);
        }
        let kernels = self.choice_kernels(self.logits_row(row)?, count);
        if kernels.is_empty() {
            return Ok(false);
        }
        self.launch(&kernels, || choice_name(count).into())?;
        self.choices.were_launched(count);
        self.post_choice(row.row, count)?;
        Ok(true)
    }

    /// Puts the best token of a row of the last step where the next step reads it.
    pub fn choose_next_token(&mut self, row: &LogitsRow) -> Result<(), BackendError> {
        self.choose(row, 1, |made, wanted| made == wanted).map(|_| ())
    }

    /// [`Recorder::argmax`].
    pub fn choose_best(&mut self, row: &LogitsRow) -> Result<TokenId, BackendError> {
        self.choose(row, 1, |made, wanted| made >= wanted)?;
        let read = self.choices.mailbox.read();
        best(&read.map_err(|e| self.failed_last(e))?)
    }

    /// [`Recorder::taken`].
    pub fn taken_token(&mut self) -> Result<TokenId, BackendError> {
        if !self.choices.is_taken {
            return Err(not_taken());
        }
        let read = self.choices.taken.read();
        best(&read.map_err(|e| self.failed_last(e))?)
    }

    /// [`Recorder::candidates`].
    pub fn choose_candidates(
        &mut self,
        row: &LogitsRow,
        count: usize,
        out: &mut Vec<(TokenId, f32)>,
    ) -> Result<(), BackendError> {
        let count = count.clamp(1, MAX_CANDIDATES);
        if !self.choose(row, count, |made, wanted| made >= wanted)? {
            let mut all = Vec::new();
            self.logits(row, &mut all)?;
            return best_candidates(&all[..row.choosable], count, out);
        }
        let read = self.choices.mailbox.read();
        let found = read.map_err(|e| self.failed_last(e))?;
        out.clear();
        for (rank, id) in pairs(&found).take(count) {
            match rank {
                RANK_NAN => return Err(nan_logit(id as usize)),
                // No logit is left.
                0 => break,
                rank => out.push((TokenId(id), logit_of(rank))),
            }
        }
        out.retain(|(_, logit)| *logit > f32::NEG_INFINITY);
        Ok(())
    }
}

/// The pairs of rank and id of a mailbox.
fn pairs(bytes: &[u8]) -> impl Iterator<Item = (u32, u32)> {
    let word = |b: &[u8]| b.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    bytes.chunks_exact(PAIR_BYTES).map(move |pair| (word(&pair[..4]), word(&pair[4..])))
}

/// The best token, unless a logit is a NaN.
fn best(bytes: &[u8]) -> Result<TokenId, BackendError> {
    match pairs(bytes).next() {
        Some((RANK_NAN, id)) => Err(nan_logit(id as usize)),
        Some((_, id)) => Ok(TokenId(id)),
        None => Err(BackendError::Input("no logits".into())),
    }
}
