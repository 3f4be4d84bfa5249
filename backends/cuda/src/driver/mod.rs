//! The few things that the backend asks of a device, with two implementations: NVIDIA's driver, and the host harness that
//! runs the same kernels on the CPU.
//!
//! Work is queued in order on one stream; reads wait for it. Deliberately absent: several streams, several devices.

mod code;
pub mod dry;
pub mod harness;
pub mod nvidia;
pub mod occupancy;
#[cfg(all(test, moe_host_harness))]
mod tests;

use moe_run_runtime::executable::Progress;
use std::sync::Arc;
use std::time::Duration;

/// Names, separated by commas, of what is not to be used though the device has it: `overlap`, `matrix-units`; and `graph`:
/// no step is recorded, and every launch is waited for, so that one that fails is named.
pub const SWITCHED_OFF: &str = "MOE_RUN_CUDA_OFF";

/// The hash of the sources that the embedded code was made from.
#[cfg(test)]
pub(super) fn embedded_sources() -> Option<&'static str> {
    code::Code::for_capability(code::OVERLAP_CAPABILITY)?.sources()
}

/// Whether [`SWITCHED_OFF`] names a feature.
pub(super) fn switched_off(feature: &str) -> bool {
    std::env::var(SWITCHED_OFF).is_ok_and(|all| all.split(',').any(|f| f.trim() == feature))
}

/// What a driver reports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// There is no device, or not one that can be used.
    #[error("{detail}; {advice}")]
    NoDevice {
        /// What was looked for and what was found.
        detail: String,
        /// What to try.
        advice: String,
    },
    /// The memory is used up.
    #[error("{wanted_bytes} bytes wanted, {free_bytes} free")]
    OutOfMemory {
        /// Asked for.
        wanted_bytes: u64,
        /// There, as the device told.
        free_bytes: u64,
    },
    /// A launch or copy failed; on a GPU every later call fails too.
    #[error("{0}")]
    Failed(String),
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverInfo {
    /// Its name.
    pub name: String,
    /// For reports: driver version, compute capability, multiprocessors …
    pub details: Vec<(String, String)>,
    /// Compute capability, major and minor; of the harness that of the chips whose occupancy it takes.
    pub capability: (i32, i32),
    /// In all.
    pub memory_bytes: u64,
    /// Multiprocessors: how many blocks keep the device busy.
    pub multiprocessors: u32,
    /// Shared memory that a block may have without asking.
    pub shared_bytes: u32,
    /// It is the processor in disguise.
    pub software: bool,
    /// Kernels that multiply tiles with `mma` run on it.
    pub matrix_units: bool,
    /// Why no kernel runs on it; `None` for a device that can be opened.
    pub unsupported: Option<String>,
}

/// A kernel's parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Param {
    /// Device memory [address, address + bytes): the harness checks every access against it. Address 0 is null.
    Memory {
        /// Where.
        address: u64,
        /// How much of it the kernel may touch.
        bytes: u64,
    },
    /// A number.
    I32(i32),
    /// A number.
    F32(f32),
    /// A number.
    U64(u64),
}

impl Param {
    /// No memory.
    pub const NULL: Param = Param::Memory { address: 0, bytes: 0 };
}

/// One launch of one kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelLaunch {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory.
    pub shared_bytes: u32,
    /// In the kernel's order.
    pub params: Vec<Param>,
}

/// Launches that were recorded once and run again and again.
pub trait CapturedGraph: Send {
    /// Runs them all.
    ///
    /// # Errors
    /// What the driver reports.
    fn replay(&self) -> Result<(), DriverError>;
}

/// Host memory that the device copies from while the host goes on; one copy at a time.
pub trait Staging: Send {
    /// The memory, once the last copy from it has ended.
    ///
    /// # Errors
    /// What the driver reports of that copy.
    fn memory(&mut self) -> Result<&mut [u8], DriverError>;

    /// Queues a copy of the first `bytes` bytes to the device.
    ///
    /// # Errors
    /// What the driver reports.
    fn send(&mut self, address: u64, bytes: usize) -> Result<(), DriverError>;
}

/// Small results that are read while later work still runs.
pub trait Mailbox: Send {
    /// Queues copies of device memory (address, bytes), one behind the other, as they are at this point of the queue.
    ///
    /// # Errors
    /// What the driver reports.
    fn post(&mut self, parts: &[(u64, usize)]) -> Result<(), DriverError>;

    /// What was posted last, once it has arrived.
    ///
    /// # Errors
    /// What the driver reports, of the copies or of the work in front of them.
    fn read(&mut self) -> Result<Vec<u8>, DriverError>;
}

/// A device: memory, launches, recorded launches, time.
pub trait Driver: Send + Sync {
    /// What it is.
    fn info(&self) -> &DriverInfo;

    /// Gets kernels ready, so that no later launch waits for that; optional, and what fails is reported by the launch.
    fn load_kernels(&self, kernels: &[&'static str], progress: Option<&(dyn Fn(Progress) + Send + Sync)>) {
        let _ = (kernels, progress);
    }

    /// How many blocks of a kernel, of so many threads and bytes of dynamic shared memory, a multiprocessor holds at once; at
    /// least 1.
    ///
    /// # Errors
    /// What the driver reports.
    fn resident_blocks(
        &self,
        kernel: &'static str,
        threads: u32,
        shared_bytes: u32,
    ) -> Result<u32, DriverError>;

    /// Bytes free and in all.
    ///
    /// # Errors
    /// What the driver reports.
    fn memory(&self) -> Result<(u64, u64), DriverError>;

    /// Memory of at least one byte, aligned to 256; its content is undefined.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`].
    fn allocate(&self, bytes: u64) -> Result<u64, DriverError>;

    /// Gives back what [`Driver::allocate`] gave, once the queued work that uses it is done.
    fn free(&self, address: u64);

    /// Host to device; the source may be reused when this returns.
    ///
    /// # Errors
    /// What the driver reports.
    fn upload(&self, address: u64, bytes: &[u8]) -> Result<(), DriverError>;

    /// Memory for copies to the device that overlap with the host's work.
    ///
    /// # Errors
    /// What the driver reports.
    fn staging(&self, bytes: usize) -> Result<Box<dyn Staging>, DriverError>;

    /// For results of up to `bytes` bytes.
    ///
    /// # Errors
    /// What the driver reports.
    fn mailbox(&self, bytes: usize) -> Result<Box<dyn Mailbox>, DriverError>;

    /// Bytes a second that a copy within the device reads and writes, measured over `bytes` bytes: the limit that kernels
    /// which read memory are set against.
    ///
    /// # Errors
    /// What the driver reports.
    fn copy_bytes_per_second(&self, bytes: u64) -> Result<f64, DriverError>;

    /// Device to host, after all queued work.
    ///
    /// # Errors
    /// What the driver reports, of this copy or of any queued launch.
    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<(), DriverError>;

    /// Zeroes.
    ///
    /// # Errors
    /// What the driver reports.
    fn clear(&self, address: u64, bytes: u64) -> Result<(), DriverError>;

    /// Queues launches.
    ///
    /// # Errors
    /// What the driver reports.
    fn launch(&self, launches: &[KernelLaunch]) -> Result<(), DriverError>;

    /// Runs launches to their end and tells the time that they took on the device.
    ///
    /// # Errors
    /// What the driver reports.
    fn launch_timed(&self, launches: &[KernelLaunch]) -> Result<Duration, DriverError>;

    /// Records launches without running them. No other thread may queue work meanwhile: it would be recorded, too.
    ///
    /// # Errors
    /// What the driver reports.
    fn capture(&self, launches: &[KernelLaunch]) -> Result<Box<dyn CapturedGraph>, DriverError>;

    /// Waits for all queued work.
    ///
    /// # Errors
    /// What any of it reports.
    fn synchronize(&self) -> Result<(), DriverError>;
}

/// Device memory that frees itself.
pub struct DeviceBuffer {
    driver: Arc<dyn Driver>,
    address: u64,
    bytes: u64,
}

impl std::fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceBuffer({:#x}, {} bytes)", self.address, self.bytes)
    }
}

impl DeviceBuffer {
    /// New memory with undefined content.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`].
    pub fn new(driver: &Arc<dyn Driver>, bytes: u64) -> Result<DeviceBuffer, DriverError> {
        let address = driver.allocate(bytes.max(1))?;
        Ok(DeviceBuffer { driver: Arc::clone(driver), address, bytes })
    }

    /// New memory with the given content.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn from_bytes(driver: &Arc<dyn Driver>, bytes: &[u8]) -> Result<DeviceBuffer, DriverError> {
        let buffer = DeviceBuffer::new(driver, bytes.len() as u64)?;
        driver.upload(buffer.address, bytes)?;
        Ok(buffer)
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// All of it, as a parameter.
    #[must_use]
    pub fn param(&self) -> Param {
        Param::Memory { address: self.address, bytes: self.bytes }
    }

    /// A part of it, as a parameter.
    #[must_use]
    pub fn slice(&self, offset_bytes: u64, bytes: u64) -> Param {
        debug_assert!(offset_bytes + bytes <= self.bytes, "slice outside the buffer");
        Param::Memory { address: self.address + offset_bytes, bytes }
    }

    /// A copy on the host.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn read(&self) -> Result<Vec<u8>, DriverError> {
        let mut bytes = vec![0; self.bytes as usize];
        self.driver.download(self.address, &mut bytes)?;
        Ok(bytes)
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        self.driver.free(self.address);
    }
}
