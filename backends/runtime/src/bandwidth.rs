//! Beside stage 5: how fast the machine's memory is read, the limit that measured times are set against.
//!
//! Output: bytes a second of a plain loop over a buffer that no cache holds. Absent on purpose: other devices' memory.

use std::fs;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// The buffer's least size, and its size where the system does not tell that of its caches.
const MIN_BYTES: u64 = 256 << 20;
/// And its largest.
const MAX_BYTES: u64 = 1 << 30;
/// Times that a buffer must be larger than the last-level cache.
const TIMES_THE_CACHE: u64 = 8;
/// The loop's passes; the best counts, for the limit is asked and not the average of a busy machine.
const PASSES: usize = 7;

/// The largest cache of the first core; `None` where the system does not tell.
#[must_use]
pub fn last_level_cache_bytes() -> Option<u64> {
    let entries = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let sizes = entries.filter_map(|entry| {
        let size = fs::read_to_string(entry.ok()?.path().join("size")).ok()?;
        parse_size(size.trim())
    });
    sizes.max()
}

/// "32768K" in bytes.
fn parse_size(text: &str) -> Option<u64> {
    match text.strip_suffix('K') {
        Some(n) => n.parse::<u64>().ok().map(|n| n << 10),
        None => text.strip_suffix('M')?.parse::<u64>().ok().map(|n| n << 20),
    }
}

/// A size that no cache holds: weights that are to come from memory must be at least as large in all.
#[must_use]
pub fn beyond_cache_bytes() -> u64 {
    last_level_cache_bytes().map_or(MIN_BYTES, |b| (b * TIMES_THE_CACHE).clamp(MIN_BYTES, MAX_BYTES))
}

/// Bytes a second that `threads` threads read from memory: each sums its own part of a buffer of
/// [`beyond_cache_bytes`], and the best of several passes counts.
#[must_use]
pub fn read_bytes_per_second(threads: NonZeroUsize) -> f64 {
    let words_each = (beyond_cache_bytes() / 8).div_ceil(threads.get() as u64) as usize;
    let barrier = Barrier::new(threads.get());
    let mut elapsed = vec![[Duration::ZERO; PASSES]; threads.get()];
    thread::scope(|scope| {
        for mine in &mut elapsed {
            let barrier = &barrier;
            scope.spawn(move || {
                // Written, so that the pages exist, and by the thread that reads them, so that they are near it.
                let words: Vec<u64> = (0..words_each as u64).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
                for pass in mine {
                    barrier.wait();
                    let start = Instant::now();
                    black_box(sum(black_box(&words)));
                    *pass = start.elapsed();
                }
            });
        }
    });
    // A pass takes as long as its slowest thread.
    let pass = |p: usize| elapsed.iter().map(|e| e[p]).max().unwrap_or_default().as_secs_f64();
    let best = (0..PASSES).map(pass).fold(f64::INFINITY, f64::min);
    (words_each * 8 * threads.get()) as f64 / best
}

/// Independent sums, so that no addition waits for the one before it.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    let mut chunks = words.chunks_exact(32);
    for chunk in &mut chunks {
        for (s, w) in sums.iter_mut().zip(chunk) {
            *s = s.wrapping_add(*w);
        }
    }
    chunks.remainder().iter().chain(&sums).fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        let words: Vec<u64> = (1..=100).collect();
        assert_eq!(sum(&words), 5050);
    }

    #[test]
    fn sizes_as_the_system_writes_them() {
        assert_eq!(parse_size("512K"), Some(512 << 10));
        assert_eq!(parse_size("32M"), Some(32 << 20));
        assert_eq!(parse_size("no size"), None);
    }
}
