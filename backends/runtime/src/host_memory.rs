//! The host's memory: how much this process may have, and how much of that is free. Linux says so under /proc and, where
//! a control group limits the process, under /sys/fs/cgroup; elsewhere it is not known.

use crate::error::BackendError;
use crate::options::KvType;
use crate::rings::PoolSize;
use moe_run_graph::ir::Graph;
use std::fs;
use std::path::{Path, PathBuf};

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// The machine's, or the control group's limit where that is lower.
    pub total_bytes: u64,
    /// Of it, what is free or only holds files that can be read again.
    pub available_bytes: u64,
}

/// The memory that this process may have; `None` where the system does not say.
#[must_use]
pub fn host_memory() -> Option<HostMemory> {
    of_root(Path::new("/"))
}

/// Refuses a KV cache that is larger than all of the host's memory. Zeros that nobody touched take no memory there, so
/// allocating them would not tell.
///
/// # Errors
/// [`BackendError::OutOfMemory`] with the context that would fit.
pub fn check_kv_cache(
    backend: &'static str,
    graph: &Graph,
    kv_type: KvType,
    size: PoolSize,
) -> Result<(), BackendError> {
    let wanted_bytes = size.bytes(graph, kv_type);
    match host_memory() {
        Some(memory) if memory.total_bytes < wanted_bytes => {
            let all_of_it = size.most_tokens(graph, kv_type, memory.total_bytes);
            Err(BackendError::OutOfMemory {
                what: format!("backend {backend}: the KV cache of {} tokens ({kv_type})", size.tokens),
                wanted_bytes,
                available_bytes: memory.total_bytes,
                advice: format!("lower --ctx-size: {all_of_it} tokens would take all of the memory"),
            })
        }
        _ => Ok(()),
    }
}

/// As [`host_memory`], of a system whose files begin at `root`.
fn of_root(root: &Path) -> Option<HostMemory> {
    let info = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let total_bytes = kib("MemTotal")?;
    let mut memory = HostMemory { total_bytes, available_bytes: kib("MemAvailable").unwrap_or(total_bytes) };
    for group in control_groups(root) {
        let Some(limit_bytes) = group.limit_bytes else { continue };
        memory.total_bytes = memory.total_bytes.min(limit_bytes);
        let free_bytes = limit_bytes.saturating_sub(group.used_bytes);
        memory.available_bytes = memory.available_bytes.min(free_bytes);
    }
    Some(memory)
}

/// What a control group says of memory.
struct ControlGroup {
    /// `None` where there is no limit.
    limit_bytes: Option<u64>,
    /// Without what only holds files.
    used_bytes: u64,
}

/// The process's control group and those around it, of version 2 (one hierarchy) or 1 (one for memory).
fn control_groups(root: &Path) -> Vec<ControlGroup> {
    let list = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut groups = Vec::new();
    for line in list.lines() {
        // "0::/path" in version 2, "9:memory:/path" in version 1.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (base, limit, usage, files) = if controllers.is_empty() {
            ("sys/fs/cgroup", "memory.max", "memory.current", "file")
        } else if controllers.split(',').any(|c| c == "memory") {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
        } else {
            continue;
        };
        let base = root.join(base);
        let mut dir: PathBuf = base.join(path.trim_start_matches('/'));
        // Inside a container the path may be the host's, and the group is mounted as the base itself.
        while dir.starts_with(&base) {
            let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
            let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
            let cached = read("memory.stat").and_then(|stat| {
                stat.lines()
                    .find_map(|l| l.strip_prefix(files)?.strip_prefix(' ')?.trim().parse::<u64>().ok())
            });
            let used_bytes = number(usage).unwrap_or(0).saturating_sub(cached.unwrap_or(0));
            groups.push(ControlGroup { limit_bytes: number(limit), used_bytes });
            if !dir.pop() {
                break;
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(name: &str, files: &[(&str, &str)]) -> Option<HostMemory> {
        let root = std::env::temp_dir().join(format!("moe-run-memory-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let memory = of_root(&root);
        let _ = fs::remove_dir_all(root);
        memory
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\n");
    const KIB: u64 = 1024;

    #[test]
    fn a_machine_without_limits_has_what_it_says() {
        let memory = HostMemory { total_bytes: 1000 * KIB, available_bytes: 600 * KIB };
        assert_eq!(system("plain", &[MEMINFO]), Some(memory));
        let unlimited = [MEMINFO, ("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "max\n")];
        assert_eq!(system("unlimited", &unlimited), Some(memory));
        assert_eq!(system("other", &[]), None);
    }

    #[test]
    fn the_narrowest_group_around_the_process_counts() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/memory.max", "512000\n"),
            ("sys/fs/cgroup/a/memory.current", "500000\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 100\nfile_mapped 7\nfile 400000\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
        ];
        let memory = HostMemory { total_bytes: 512_000, available_bytes: 412_000 };
        assert_eq!(system("nested", &files), Some(memory));
    }

    #[test]
    fn version_1_and_a_path_of_the_hosts() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "9:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "300000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "200000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "cache 1\ntotal_cache 50000\n"),
        ];
        let memory = HostMemory { total_bytes: 300_000, available_bytes: 150_000 };
        assert_eq!(system("v1", &files), Some(memory));
    }
}
