//! What an engine counts, for whoever watches it: read on any thread, written by the engine's.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Upper bounds of a histogram's buckets, in seconds.
const BOUNDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Times, counted by size.
#[derive(Debug, Default)]
pub struct Histogram {
    /// By bound; the last has those above all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

impl Histogram {
    /// Counts a time.
    pub fn add(&self, time: Duration) {
        let at = BOUNDS.iter().position(|bound| time.as_secs_f64() <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.microseconds.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    /// How many times were at most so many seconds, for each bound; the last for infinity, which is all of them.
    #[must_use]
    pub fn cumulative(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS.iter().copied().chain([f64::INFINITY]);
        let mut sum = 0;
        let mut cumulative = |bucket: &AtomicU64| {
            sum += bucket.load(Ordering::Relaxed);
            sum
        };
        bounds.zip(self.buckets.iter().map(&mut cumulative)).collect()
    }

    /// All times together, in seconds.
    #[must_use]
    pub fn sum_seconds(&self) -> f64 {
        self.microseconds.load(Ordering::Relaxed) as f64 / 1e6
    }
}

/// Counts and times of an engine.
#[derive(Debug, Default)]
pub struct Meter {
    /// Requests in the queue or running, which the queue's bound counts.
    pub(super) taken: AtomicUsize,
    /// Requests that run.
    pub(super) running: AtomicUsize,
    /// Requests that wait.
    pub(super) waiting: AtomicUsize,
    /// Tokens of prompts that were evaluated, recomputed ones included.
    pub(super) prompt_tokens: AtomicU64,
    /// Tokens of prompts that had been computed before.
    pub(super) cached_tokens: AtomicU64,
    /// Tokens generated.
    pub(super) generated_tokens: AtomicU64,
    /// Requests put back for lack of blocks.
    pub(super) preemptions: AtomicU64,
    /// Steps.
    pub(super) steps: AtomicU64,
    /// Blocks that somebody has.
    pub(super) blocks_used: AtomicUsize,
    /// All blocks.
    pub(super) blocks_total: AtomicUsize,
    /// From submission to the first token.
    pub first_token: Histogram,
    /// From a request's token to its next one.
    pub between_tokens: Histogram,
    /// From submission to the first step.
    pub queued: Histogram,
    /// Of a step.
    pub step: Histogram,
}

macro_rules! read {
    ($($(#[$doc:meta])* $name:ident: $type:ty),*) => {
        $($(#[$doc])* #[must_use] pub fn $name(&self) -> $type { self.$name.load(Ordering::Relaxed) })*
    };
}

impl Meter {
    read! {
        /// Requests that run.
        running: usize,
        /// Requests that wait.
        waiting: usize,
        /// Tokens of prompts that were evaluated, recomputed ones included.
        prompt_tokens: u64,
        /// Tokens of prompts that had been computed before.
        cached_tokens: u64,
        /// Tokens generated.
        generated_tokens: u64,
        /// Requests put back for lack of blocks.
        preemptions: u64,
        /// Steps.
        steps: u64,
        /// Blocks that somebody has.
        blocks_used: usize,
        /// All blocks.
        blocks_total: usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up() {
        let histogram = Histogram::default();
        for milliseconds in [1, 3, 3, 600_000] {
            histogram.add(Duration::from_millis(milliseconds));
        }
        let counts = histogram.cumulative();
        assert_eq!((counts[0], counts[1], counts[2]), ((0.001, 1), (0.0025, 1), (0.005, 3)));
        assert_eq!(counts[15], (300.0, 3));
        assert_eq!(counts[16], (f64::INFINITY, 4));
        assert!((histogram.sum_seconds() - 600.007).abs() < 1e-9);
    }
}
