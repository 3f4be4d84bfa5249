//! What a bench ran on, as far as the system tells.

use std::{fs, num::NonZeroUsize, thread};

use moe_run_backends::bandwidth;
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
            last_level_cache_bytes: bandwidth::last_level_cache_bytes(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_systems_files() {
        let text = "model name\t: A CPU\nMemTotal:   2048 kB\n";
        assert_eq!(field(text, "model name"), Some("A CPU"));
        assert_eq!(field(text, "MemTotal").and_then(kib), Some(2 << 20));
        assert_eq!(field(text, "absent"), None);
    }
}
