//! What a bench ran on: the processor, and how fast it reads memory.

use std::{
    fs,
    hint::black_box,
    num::NonZeroUsize,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

/// The machine, as far as the system tells.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Hardware threads that this process may use.
    pub hardware_threads: usize,
    /// Memory in all; `None` where the system does not tell.
    pub memory_bytes: Option<u64>,
    /// The last-level cache; `None` where the system does not tell.
    pub last_level_cache_bytes: Option<u64>,
    /// Operating system and architecture.
    pub system: String,
}

impl Machine {
    /// Asks the system.
    pub fn here() -> Machine {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = field(&cpuinfo, "model name").unwrap_or("unknown processor").to_owned();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Machine {
            processor,
            hardware_threads: thread::available_parallelism().map_or(1, NonZeroUsize::get),
            memory_bytes: field(&memory, "MemTotal").and_then(kib),
            last_level_cache_bytes: last_level_cache_bytes(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// The largest resident memory that this process has had, mapped files included; `None` where the system does not tell.
pub fn peak_memory_bytes() -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM").and_then(kib)
}

/// The value behind `name` in a file of lines "name : value".
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().filter_map(|l| l.split_once(':')).find(|(n, _)| n.trim() == name).map(|(_, v)| v.trim())
}

/// "123 kB" in bytes.
fn kib(value: &str) -> Option<u64> {
    value.split_whitespace().next()?.parse::<u64>().ok().map(|n| n * 1024)
}

/// The largest cache that the first core sees.
fn last_level_cache_bytes() -> Option<u64> {
    let sizes = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let sizes = sizes.filter_map(|entry| {
        let size = fs::read_to_string(entry.ok()?.path().join("size")).ok()?;
        let size = size.trim();
        match size.strip_suffix('K') {
            Some(n) => n.parse::<u64>().ok().map(|n| n << 10),
            None => size.strip_suffix('M')?.parse::<u64>().ok().map(|n| n << 20),
        }
    });
    sizes.max()
}

/// Words that the read loop goes through at the least: 256 MiB.
const MIN_BYTES: u64 = 256 << 20;
/// And at the most: 1 GiB.
const MAX_BYTES: u64 = 1 << 30;
/// The loop's passes; the best counts, for the limit is asked and not the average of a busy machine.
const PASSES: usize = 7;

/// How many bytes a second `threads` threads read from memory: each sums its own part of a buffer of eight times the
/// last-level cache, of which the best of several passes counts.
pub fn read_bandwidth(threads: NonZeroUsize) -> f64 {
    let bytes = last_level_cache_bytes().map_or(MIN_BYTES, |llc| (llc * 8).clamp(MIN_BYTES, MAX_BYTES));
    let words_each = (bytes / 8).div_ceil(threads.get() as u64) as usize;
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
    let pass_seconds =
        (0..PASSES).map(|p| elapsed.iter().map(|e| e[p]).max().unwrap_or_default().as_secs_f64());
    (words_each * 8 * threads.get()) as f64 / pass_seconds.fold(f64::INFINITY, f64::min)
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
    fn fields_of_the_systems_files() {
        let text = "model name\t: A CPU\nMemTotal:   2048 kB\n";
        assert_eq!(field(text, "model name"), Some("A CPU"));
        assert_eq!(field(text, "MemTotal").and_then(kib), Some(2 << 20));
        assert_eq!(field(text, "absent"), None);
    }
}
