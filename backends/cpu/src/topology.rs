//! What machine this is: the processor's name, its physical cores. Linux says so under /proc and /sys;
//! elsewhere the portable answers of the standard library serve.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;
use std::thread;

/// Processors (hyper-threads) that this process may use: affinity and, on Linux, a control group's share of time count.
pub fn processors() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Cores that this process may use, hyper-threads of one core counted once.
pub fn physical_cores() -> NonZeroUsize {
    let logical = processors();
    let mut cores = BTreeSet::new();
    for cpu in 0.. {
        let base = format!("/sys/devices/system/cpu/cpu{cpu}/topology");
        let read = |file: &str| fs::read_to_string(format!("{base}/{file}")).ok();
        let (Some(package), Some(core)) = (read("physical_package_id"), read("core_id")) else { break };
        cores.insert((package, core));
    }
    NonZeroUsize::new(cores.len()).map_or(logical, |cores| cores.min(logical))
}

/// The processor's own name, or the architecture's.
pub fn processor_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, n)| n.trim()));
    name.map_or_else(|| format!("{} processor", std::env::consts::ARCH), str::to_owned)
}
