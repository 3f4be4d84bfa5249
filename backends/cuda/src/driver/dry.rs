//! A device of which only the properties are known: it hands out addresses, and runs nothing.
//!
//! What a backend would launch on a chip is made on it (dry.rs), to know which kernels that takes and how long it may run.

use super::{CapturedGraph, Driver, DriverError, DriverInfo, KernelLaunch, Mailbox, Staging, occupancy};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// As the allocations of every driver are aligned.
const ALIGN_BYTES: u64 = 256;
/// More than any model takes.
const MEMORY_BYTES: u64 = 1 << 62;

struct Dry {
    info: DriverInfo,
    /// The address of the next allocation; 0 is null.
    next: AtomicU64,
}

/// A device with these properties.
#[must_use]
pub fn open(info: DriverInfo) -> Arc<dyn Driver> {
    Arc::new(Dry { info, next: AtomicU64::new(ALIGN_BYTES) })
}

fn runs_nothing<T>() -> Result<T, DriverError> {
    Err(DriverError::Failed("this device is a description: nothing runs on it".into()))
}

impl Driver for Dry {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn resident_blocks(&self, kernel: &'static str, threads: u32, bytes: u32) -> Result<u32, DriverError> {
        Ok(occupancy::resident_blocks(kernel, self.info.capability, threads, bytes).unwrap_or(1))
    }

    fn memory(&self) -> Result<(u64, u64), DriverError> {
        Ok((MEMORY_BYTES, MEMORY_BYTES))
    }

    fn allocate(&self, bytes: u64) -> Result<u64, DriverError> {
        if bytes > MEMORY_BYTES {
            return Err(DriverError::OutOfMemory { wanted_bytes: bytes, free_bytes: MEMORY_BYTES });
        }
        Ok(self.next.fetch_add(bytes.max(1).next_multiple_of(ALIGN_BYTES), Ordering::Relaxed))
    }

    fn free(&self, _address: u64) {}

    fn upload(&self, _address: u64, _bytes: &[u8]) -> Result<(), DriverError> {
        runs_nothing()
    }

    fn staging(&self, _bytes: usize) -> Result<Box<dyn Staging>, DriverError> {
        runs_nothing()
    }

    fn mailbox(&self, _bytes: usize) -> Result<Box<dyn Mailbox>, DriverError> {
        runs_nothing()
    }

    fn copy_bytes_per_second(&self, _bytes: u64) -> Result<f64, DriverError> {
        runs_nothing()
    }

    fn download(&self, _address: u64, _bytes: &mut [u8]) -> Result<(), DriverError> {
        runs_nothing()
    }

    /// Memory that holds nothing is as clear as it will be.
    fn clear(&self, _address: u64, _bytes: u64) -> Result<(), DriverError> {
        Ok(())
    }

    fn launch(&self, _launches: &[KernelLaunch]) -> Result<(), DriverError> {
        runs_nothing()
    }

    fn launch_timed(&self, _launches: &[KernelLaunch]) -> Result<Duration, DriverError> {
        runs_nothing()
    }

    fn capture(&self, _launches: &[KernelLaunch]) -> Result<Box<dyn CapturedGraph>, DriverError> {
        runs_nothing()
    }

    fn synchronize(&self) -> Result<(), DriverError> {
        Ok(())
    }
}
