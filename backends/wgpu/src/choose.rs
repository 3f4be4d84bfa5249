//! Stage 7, wgpu: what the device chooses from the logits, and reading it back while the next step runs.
//!
//! A step whose logits are one row's chooses its candidates in its own compute pass and copies them into one of two
//! buffers that the host reads. The best id also becomes the next step's token, so that this step can be queued before
//! anything is read; its own choice then goes to the other buffer.

use super::device::Device;
use super::emit::NONE;
use super::ops::sample;
use super::plans::Logits;
use super::program::Sampling;
use moe_run_graph::ids::TokenId;
use moe_run_runtime::choice::{MAX_CANDIDATES, nan_logit};
use moe_run_runtime::error::BackendError;

/// The copy of the sampler's result that ends a step: to which of the two buffers, how many candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResultCopy {
    pub buffer: usize,
    pub count: usize,
}

/// Where a choice is, of which row, and when it is there.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub copy: ResultCopy,
    pub row: usize,
    pub submission: wgpu::SubmissionIndex,
}

/// The sampler of an executable.
pub(super) struct Chooser {
    pub logits: Logits,
    pub sampling: Sampling,
    /// Where the result lies in the arena, in words.
    result_at: u64,
    buffers: [wgpu::Buffer; 2],
    /// What the parameters on the device say.
    wanted: Option<sample::Wanted>,
    /// Candidates that each step chooses.
    count: usize,
    /// Of the last step's logits.
    pub chosen: Option<Choice>,
    /// What the last step took as its token.
    pub taken: Option<Choice>,
}

impl Chooser {
    pub fn new(
        device: &Device,
        logits: Logits,
        sampling: Sampling,
        result_at: u32,
    ) -> Result<Chooser, BackendError> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let bytes = sample::result_words(MAX_CANDIDATES) as u64 * 4;
        let buffer = || device.buffer("the sampled token", bytes, usage, "use another device");
        Ok(Chooser {
            logits,
            sampling,
            result_at: u64::from(result_at),
            buffers: [buffer()?, buffer()?],
            wanted: None,
            count: 1,
            chosen: None,
            taken: None,
        })
    }

    /// How many candidates the steps from now on choose.
    pub fn expect(&mut self, count: usize) {
        self.count = count.clamp(1, MAX_CANDIDATES);
    }

    /// Points the sampler at the logits at word `at`.
    pub fn aim(&mut self, device: &Device, at: u32) {
        let wanted = [at, self.count as u32];
        if self.wanted != Some(wanted) {
            for begins in self.sampling.params_at {
                device.queue.write_buffer(&self.sampling.params, begins, bytemuck::cast_slice(&wanted));
            }
            self.wanted = Some(wanted);
        }
    }

    /// The copy that the next result takes: to the buffer that nobody waits for.
    pub fn next_copy(&self) -> ResultCopy {
        ResultCopy { buffer: self.taken.as_ref().map_or(0, |taken| 1 - taken.copy.buffer), count: self.count }
    }

    /// Encodes the copy of the result, behind the sampler's dispatches.
    pub fn encode_copy(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        arena: &wgpu::Buffer,
        copy: ResultCopy,
    ) -> ResultCopy {
        let bytes = sample::result_words(copy.count) as u64 * 4;
        encoder.copy_buffer_to_buffer(arena, self.result_at * 4, &self.buffers[copy.buffer], 0, bytes);
        copy
    }

    /// Waits for a choice, and for nothing that was submitted behind it: candidates best first.
    pub fn read(&self, device: &Device, choice: &Choice) -> Result<Vec<(TokenId, f32)>, BackendError> {
        let words = sample::result_words(choice.copy.count);
        let buffer = &self.buffers[choice.copy.buffer];
        let words = device.map_words(buffer, words, Some(choice.submission.clone()))?;
        let [first_nan, pairs @ ..] = words.as_slice() else { return Ok(Vec::new()) };
        if *first_nan != NONE {
            return Err(nan_logit(*first_nan as usize));
        }
        let candidates = pairs.chunks_exact(2).filter(|pair| pair[0] != NONE);
        Ok(candidates.map(|pair| (TokenId(pair[0]), f32::from_bits(pair[1]))).collect())
    }
}
