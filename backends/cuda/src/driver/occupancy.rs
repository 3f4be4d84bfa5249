//! How many blocks of a kernel a multiprocessor holds at once, from what ptxas says of the kernel and what the chips have: for
//! devices of which only the description is at hand. A GPU's own driver is asked where there is one.
//!
//! Input: kernels/ptxas-table.txt. The chips' numbers are those of the CUDA programming guide's table of compute capabilities.

use std::collections::HashMap;
use std::sync::OnceLock;

/// Registers, spilled bytes, local bytes and static shared bytes of each kernel on five chips (scripts/nvrtc-check.py).
const TABLE: &str = include_str!("../../../../kernels/ptxas-table.txt");

/// What a multiprocessor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Multiprocessor {
    warps: u32,
    blocks: u32,
    shared_bytes: u32,
    /// Of each block's shared memory, beside its own.
    reserved_bytes: u32,
}

/// Registers of a multiprocessor; a warp gets them 256 at a time.
const REGISTERS: u32 = 65536;
const REGISTERS_AT_A_TIME: u32 = 256;
/// Each has a quarter of the registers.
const SCHEDULERS: u32 = 4;
/// Shared memory is given out so many bytes at a time.
const SHARED_AT_A_TIME: u32 = 128;

fn multiprocessor(capability: (i32, i32)) -> Multiprocessor {
    let of = |warps, blocks, kib: u32, reserved_bytes| Multiprocessor {
        warps,
        blocks,
        shared_bytes: kib << 10,
        reserved_bytes,
    };
    match capability {
        (..=7, _) => of(32, 16, 64, 0),
        (8, 0) => of(64, 32, 164, 1024),
        (8, ..=8) => of(48, 16, 100, 1024),
        (8, _) => of(48, 24, 100, 1024),
        (9..=11, _) => of(64, 32, 228, 1024),
        (12.., _) => of(48, 24, 100, 1024),
    }
}

/// Registers and static shared bytes of a kernel on the newest of the table's chips that is not newer than this.
#[must_use]
pub fn of_kernel(kernel: &str, capability: (i32, i32)) -> Option<(u32, u32)> {
    type Rows = (Vec<i32>, HashMap<&'static str, Vec<(u32, u32)>>);
    static ROWS: OnceLock<Rows> = OnceLock::new();
    let read = || -> Rows {
        let mut lines = TABLE.lines().filter(|line| !line.starts_with('#'));
        let chips = lines.next().unwrap_or_default().split_whitespace().skip(1);
        let chips = chips.filter_map(|name| name.strip_prefix("sm_")?.parse().ok()).collect();
        let numbers = |cell: &str| -> Option<(u32, u32)> {
            let mut numbers = cell.split('/');
            Some((numbers.next()?.parse().ok()?, numbers.next_back()?.parse().ok()?))
        };
        let row = |line: &'static str| {
            let mut cells = line.split_whitespace();
            Some((cells.next()?, cells.filter_map(numbers).collect()))
        };
        (chips, lines.filter_map(row).collect())
    };
    let (chips, rows) = ROWS.get_or_init(read);
    let (major, minor) = capability;
    let column = chips.iter().rposition(|chip| *chip <= 10 * major + minor)?;
    rows.get(kernel)?.get(column).copied()
}

/// Blocks of a kernel that a multiprocessor of this chip holds at once, 0 where not one fits; `None` for a kernel that the table
/// does not know, or a chip before those that it knows.
#[must_use]
pub fn resident_blocks(
    kernel: &str,
    capability: (i32, i32),
    threads: u32,
    dynamic_shared_bytes: u32,
) -> Option<u32> {
    let (registers, static_bytes) = of_kernel(kernel, capability)?;
    let has = multiprocessor(capability);
    let warps = threads.div_ceil(32).max(1);
    let of_warp = (registers.max(1) * 32).next_multiple_of(REGISTERS_AT_A_TIME);
    let by_registers = SCHEDULERS * (REGISTERS / SCHEDULERS / of_warp) / warps;
    let shared = (static_bytes + dynamic_shared_bytes).next_multiple_of(SHARED_AT_A_TIME);
    let by_shared = has.shared_bytes / (shared + has.reserved_bytes).max(1);
    Some(by_registers.min(has.warps / warps).min(has.blocks).min(by_shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 80 registers of 256 threads: 20480 each, so three of 65536; 64: four. 48 KiB of shared memory go into 228 four times.
    #[test]
    fn registers_warps_and_shared_memory_bound_the_blocks() {
        for (kernel, capability) in [("add", (9, 0)), ("add", (8, 6)), ("add", (12, 0)), ("add", (7, 5))] {
            let warps = multiprocessor(capability).warps;
            assert_eq!(resident_blocks(kernel, capability, 256, 0), Some(warps / 8), "{capability:?}");
        }
        let (registers, _) = of_kernel("norm_matmul", (9, 0)).unwrap_or_default();
        let wanted = 65536 / (registers.next_multiple_of(8) * 256);
        assert_eq!(resident_blocks("norm_matmul", (9, 0), 256, 0), Some(wanted));
        assert_eq!(resident_blocks("add", (9, 0), 32, 48 << 10), Some(4));
        assert_eq!(resident_blocks("add", (9, 0), 32, 300 << 10), Some(0));
        assert_eq!(resident_blocks("no_such_kernel", (9, 0), 32, 0), None);
        assert_eq!(resident_blocks("add", (7, 0), 32, 0), None);
    }
}
