//! The host harness: kernels/host runs the same kernels, compiled by g++, on the CPU.
//!
//! Every launch runs to its end before the call returns. It checks what a GPU would not say clearly: accesses outside
//! the memory that a parameter names, barriers that not all threads reach, launch parameters of the wrong kind.

use super::{Driver, DriverError};
use std::sync::Arc;

/// The harness as a device.
///
/// # Errors
/// [`DriverError::NoDevice`] in a build that had no C++ compiler.
pub fn open() -> Result<Arc<dyn Driver>, DriverError> {
    open_with(Schedule::Ascending)
}

/// The order in which the threads of a block get their turns, and the blocks of a grid theirs. A kernel without a race
/// gives the same bits under both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Thread 0 and block 0 first.
    Ascending,
    /// The last ones first.
    Descending,
}

#[cfg(not(moe_host_harness))]
/// The harness with a given schedule.
///
/// # Errors
/// [`DriverError::NoDevice`], always: this build has no harness.
pub fn open_with(_schedule: Schedule) -> Result<Arc<dyn Driver>, DriverError> {
    Err(DriverError::NoDevice {
        detail: format!(
            "this moe-run was built without the CUDA host harness: {}",
            env!("MOE_HOST_HARNESS_MISSING")
        ),
        advice: "build with --features host-harness and a C++ compiler (on Debian: apt-get install g++)"
            .into(),
    })
}

#[cfg(moe_host_harness)]
pub use built::{kernel_names, open_with};

#[cfg(moe_host_harness)]
mod built {
    use super::Schedule;
    use crate::driver::{
        CapturedGraph, Driver, DriverError, DriverInfo, KernelLaunch, Mailbox, Param, Staging,
    };
    use crate::driver::{occupancy, switched_off};
    use std::alloc::{Layout, alloc, dealloc};
    use std::collections::BTreeMap;
    use std::ffi::{CStr, CString, c_char, c_int};
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::{Duration, Instant};

    /// What `moe_host_launch` takes a parameter as: `Param` in kernels/host/host.h.
    #[repr(C)]
    struct HostParam {
        kind: u32,
        reserved: u32,
        bits: u64,
        lo: u64,
        hi: u64,
    }

    unsafe extern "C" {
        fn moe_host_launch(
            name: *const c_char,
            grid: *const u32,
            block: *const u32,
            dynamic_bytes: usize,
            shared_limit_bytes: usize,
            params: *const HostParam,
            count: usize,
            reversed: c_int,
            error: *mut c_char,
        ) -> c_int;
        fn moe_host_release_thread();
        fn moe_host_kernel_name(n: usize) -> *const c_char;
    }

    const ERROR_BYTES: usize = 512;
    const ALIGN_BYTES: usize = 256;
    /// Fresh memory is all ones: a NaN as any float, so that reading what nobody wrote shows.
    const POISON: u8 = 0xff;

    /// Gives the fibers' stacks back when the thread that ran launches ends.
    struct ReleaseThread;
    impl Drop for ReleaseThread {
        fn drop(&mut self) {
            // SAFETY: frees what launches on this thread allocated; none is running, since this is the thread's end.
            unsafe { moe_host_release_thread() }
        }
    }
    thread_local!(static RELEASE: ReleaseThread = const { ReleaseThread });

    struct Inner {
        info: DriverInfo,
        schedule: Schedule,
        /// Start and size of every live allocation.
        allocations: Mutex<BTreeMap<u64, u64>>,
    }

    /// The harness as a driver.
    pub struct HostHarness(Arc<Inner>);

    /// The harness with a given schedule.
    ///
    /// # Errors
    /// None in this build.
    pub fn open_with(schedule: Schedule) -> Result<Arc<dyn Driver>, DriverError> {
        let info = DriverInfo {
            name: "host-harness".into(),
            details: vec![
                ("kind".into(), "the kernels compiled for the processor, run as fibers".into()),
                ("matrix units".into(), "defined lane by lane".into()),
            ],
            capability: (9, 0),
            memory_bytes: host_memory_bytes(),
            multiprocessors: 4,
            shared_bytes: 48 * 1024,
            software: true,
            matrix_units: !switched_off("matrix-units"),
            unsupported: None,
        };
        let inner = Inner { info, schedule, allocations: Mutex::default() };
        Ok(Arc::new(HostHarness(Arc::new(inner))))
    }

    /// The kernels that the harness holds.
    #[must_use]
    pub fn kernel_names() -> Vec<String> {
        let name = |n| {
            // SAFETY: returns a string literal, or null past the last kernel.
            let name = unsafe { moe_host_kernel_name(n) };
            // SAFETY: not null, NUL-terminated and never freed.
            (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
        };
        (0..).map_while(name).collect()
    }

    /// Physical memory, as the system tells it; 0 where it does not.
    fn host_memory_bytes() -> u64 {
        // SAFETY: sysconf only reads its argument.
        let (pages, size) =
            unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
        u64::try_from(pages).unwrap_or(0).saturating_mul(u64::try_from(size).unwrap_or(0))
    }

    impl Inner {
        fn layout(bytes: u64) -> Result<Layout, DriverError> {
            usize::try_from(bytes)
                .ok()
                .and_then(|b| Layout::from_size_align(b, ALIGN_BYTES).ok())
                .ok_or(DriverError::OutOfMemory { wanted_bytes: bytes, free_bytes: 0 })
        }

        /// Whether [address, address + bytes) lies in one live allocation.
        fn check(&self, address: u64, bytes: u64, what: &str) -> Result<(), DriverError> {
            let allocations = self.allocations.lock().unwrap_or_else(PoisonError::into_inner);
            let inside = allocations.range(..=address).next_back().is_some_and(|(start, size)| {
                address.checked_add(bytes).is_some_and(|end| end <= start + size)
            });
            if inside {
                return Ok(());
            }
            Err(DriverError::Failed(format!(
                "{what}: {bytes} bytes at {address:#x} are not inside any live allocation"
            )))
        }

        fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DriverError> {
            self.check(address, bytes.len() as u64, "upload")?;
            // SAFETY: the range lies in a live allocation, which no Rust reference points into.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
            Ok(())
        }

        fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), DriverError> {
            self.check(address, bytes.len() as u64, "download")?;
            // SAFETY: the range lies in a live allocation, all of whose bytes are initialised.
            unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
            Ok(())
        }

        fn run(&self, launch: &KernelLaunch) -> Result<(), DriverError> {
            let name = CString::new(launch.kernel)
                .map_err(|e| DriverError::Failed(format!("kernel name {}: {e}", launch.kernel)))?;
            let mut params = Vec::with_capacity(launch.params.len());
            for (i, param) in launch.params.iter().enumerate() {
                let number = |kind, bits| HostParam { kind, reserved: 0, bits, lo: 0, hi: 0 };
                params.push(match *param {
                    Param::Memory { address: 0, .. } => number(0, 0),
                    Param::Memory { address, bytes } => {
                        self.check(address, bytes, &format!("kernel {}, parameter {i}", launch.kernel))?;
                        HostParam { kind: 0, reserved: 0, bits: address, lo: address, hi: address + bytes }
                    }
                    Param::I32(v) => number(1, u64::from(v as u32)),
                    Param::F32(v) => number(3, u64::from(v.to_bits())),
                    Param::U64(v) => number(4, v),
                });
            }
            RELEASE.with(|_| ());
            let mut error: [c_char; ERROR_BYTES] = [0; ERROR_BYTES];
            let block = [launch.threads, 1, 1];
            // SAFETY: every pointer is to live memory of the length that kernels/host/host.cpp states (3 numbers, 3
            // numbers, `count` parameters, 512 bytes for an error); kernels reach device memory through pointers whose
            // every access is checked against ranges that lie in live allocations, as checked above.
            let failed = unsafe {
                moe_host_launch(
                    name.as_ptr(),
                    launch.grid.as_ptr(),
                    block.as_ptr(),
                    launch.shared_bytes as usize,
                    self.info.shared_bytes as usize,
                    params.as_ptr(),
                    params.len(),
                    c_int::from(self.schedule == Schedule::Descending),
                    error.as_mut_ptr(),
                )
            };
            if failed == 0 {
                return Ok(());
            }
            // SAFETY: the buffer was zeroed and at most ERROR_BYTES − 1 characters and a NUL were written.
            let text = unsafe { CStr::from_ptr(error.as_ptr()) };
            Err(DriverError::Failed(text.to_string_lossy().into_owned()))
        }
    }

    /// Copies at once: the processor is the device.
    struct Plain {
        inner: Arc<Inner>,
        memory: Vec<u8>,
    }

    impl Staging for Plain {
        fn memory(&mut self) -> Result<&mut [u8], DriverError> {
            Ok(&mut self.memory)
        }

        fn send(&mut self, address: u64, bytes: usize) -> Result<(), DriverError> {
            self.inner.write(address, &self.memory[..bytes.min(self.memory.len())])
        }
    }

    /// Reads at once: what was queued has run.
    struct Letter {
        inner: Arc<Inner>,
        posted: Vec<u8>,
    }

    impl Mailbox for Letter {
        fn post(&mut self, parts: &[(u64, usize)]) -> Result<(), DriverError> {
            self.posted.clear();
            for (address, bytes) in parts {
                let mut part = vec![0; *bytes];
                self.inner.read(*address, &mut part)?;
                self.posted.extend(part);
            }
            Ok(())
        }

        fn read(&mut self) -> Result<Vec<u8>, DriverError> {
            Ok(self.posted.clone())
        }
    }

    struct Recorded {
        inner: Arc<Inner>,
        launches: Vec<KernelLaunch>,
    }

    impl CapturedGraph for Recorded {
        fn replay(&self) -> Result<(), DriverError> {
            self.launches.iter().try_for_each(|l| self.inner.run(l))
        }
    }

    impl Driver for HostHarness {
        fn info(&self) -> &DriverInfo {
            &self.0.info
        }

        fn resident_blocks(
            &self,
            kernel: &'static str,
            threads: u32,
            bytes: u32,
        ) -> Result<u32, DriverError> {
            // Kernels that only tests have are in no table.
            Ok(occupancy::resident_blocks(kernel, self.0.info.capability, threads, bytes).unwrap_or(1))
        }

        fn memory(&self) -> Result<(u64, u64), DriverError> {
            let allocations = self.0.allocations.lock().unwrap_or_else(PoisonError::into_inner);
            let used: u64 = allocations.values().sum();
            Ok((self.0.info.memory_bytes.saturating_sub(used), self.0.info.memory_bytes))
        }

        fn allocate(&self, bytes: u64) -> Result<u64, DriverError> {
            let layout = Inner::layout(bytes.max(1))?;
            let (free_bytes, _) = self.memory()?;
            if bytes > free_bytes {
                return Err(DriverError::OutOfMemory { wanted_bytes: bytes, free_bytes });
            }
            // SAFETY: the layout is of at least one byte.
            let pointer = unsafe { alloc(layout) };
            if pointer.is_null() {
                return Err(DriverError::OutOfMemory { wanted_bytes: bytes, free_bytes });
            }
            // SAFETY: the allocation is of that size.
            unsafe { pointer.write_bytes(POISON, layout.size()) };
            let address = pointer as u64;
            let mut allocations = self.0.allocations.lock().unwrap_or_else(PoisonError::into_inner);
            allocations.insert(address, layout.size() as u64);
            Ok(address)
        }

        fn free(&self, address: u64) {
            let mut allocations = self.0.allocations.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(bytes) = allocations.remove(&address)
                && let Ok(layout) = Inner::layout(bytes)
            {
                // SAFETY: `allocate` made it with this layout, and it has just been taken off the list of live ones.
                unsafe { dealloc(address as *mut u8, layout) };
            }
        }

        fn upload(&self, address: u64, bytes: &[u8]) -> Result<(), DriverError> {
            self.0.write(address, bytes)
        }

        fn staging(&self, bytes: usize) -> Result<Box<dyn Staging>, DriverError> {
            Ok(Box::new(Plain { inner: Arc::clone(&self.0), memory: vec![0; bytes] }))
        }

        fn mailbox(&self, _bytes: usize) -> Result<Box<dyn Mailbox>, DriverError> {
            Ok(Box::new(Letter { inner: Arc::clone(&self.0), posted: Vec::new() }))
        }

        fn copy_bytes_per_second(&self, bytes: u64) -> Result<f64, DriverError> {
            let source = vec![1u8; usize::try_from(bytes).unwrap_or(1 << 20).min(64 << 20)];
            let mut target = vec![0u8; source.len()];
            let start = Instant::now();
            target.copy_from_slice(std::hint::black_box(&source));
            std::hint::black_box(&target);
            Ok(2.0 * source.len() as f64 / start.elapsed().as_secs_f64().max(1e-9))
        }

        fn download(&self, address: u64, bytes: &mut [u8]) -> Result<(), DriverError> {
            self.0.read(address, bytes)
        }

        fn clear(&self, address: u64, bytes: u64) -> Result<(), DriverError> {
            self.0.check(address, bytes, "clear")?;
            // SAFETY: the range lies in a live allocation.
            unsafe { (address as *mut u8).write_bytes(0, bytes as usize) };
            Ok(())
        }

        fn launch(&self, launches: &[KernelLaunch]) -> Result<(), DriverError> {
            launches.iter().try_for_each(|l| self.0.run(l))
        }

        fn launch_timed(&self, launches: &[KernelLaunch]) -> Result<Duration, DriverError> {
            let start = Instant::now();
            self.launch(launches)?;
            Ok(start.elapsed())
        }

        fn capture(&self, launches: &[KernelLaunch]) -> Result<Box<dyn CapturedGraph>, DriverError> {
            Ok(Box::new(Recorded { inner: Arc::clone(&self.0), launches: launches.to_vec() }))
        }

        fn synchronize(&self) -> Result<(), DriverError> {
            Ok(())
        }
    }
}
