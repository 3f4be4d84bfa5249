//! NVIDIA's driver through cudarc, loaded when it is asked for: nothing of CUDA is needed to build, and only the driver
//! to run. Kernels are PTX that any driver from CUDA 12.2 on compiles for its chip.
//!
//! On chips of compute capability 9.0 and later launches overlap: a kernel may start while the one in front still runs,
//! fetches weights that no kernel writes, and waits for it before it touches anything else (`wait_for_previous` in
//! kernels/common/prelude.cuh). Every kernel waits, so a launch has seen all launches in front of it.
//!
//! A process has one context on a device and loads each module once, however many weights and plans it has there
//! (`Shared`); each that opens the device has a stream of its own.

use super::code::{self, Code};
use super::{
    CapturedGraph, Driver, DriverError, DriverInfo, KernelLaunch, Mailbox, Param, Staging, switched_off,
};
use cudarc::driver::{result, sys};
use modules::Modules;
use moe_run_runtime::executable::Progress;
use pinned::{Letter, Pinned};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

mod modules;
mod pinned;

/// The oldest driver whose compiler reads the embedded PTX, as `cuDriverGetVersion` states it: CUDA 12.2.
pub const OLDEST_DRIVER: i32 = 12_020;
/// The oldest driver that records overlapping launches as such: CUDA 12.4. (Graph edges know of them since 12.3.)
pub const OLDEST_OVERLAP_DRIVER: i32 = 12_040;
const INSTALL: &str =
    "install NVIDIA's driver 535 or newer (https://www.nvidia.com/drivers), or use --backend cpu";

/// The error of a driver call that is not a lack of memory.
fn failed(what: &str, error: result::DriverError) -> DriverError {
    let text = match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("{error:?}"),
    };
    DriverError::Failed(format!("{what}: {text} ({:?})", error.0))
}

fn no_device(detail: String, advice: &str) -> DriverError {
    DriverError::NoDevice { detail, advice: advice.to_owned() }
}

/// Why a GPU that is there gives no context.
fn not_opened(name: &str, error: result::DriverError) -> DriverError {
    let why = match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            "other processes hold its memory, down to what a context takes"
        }
        sys::CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another process holds it alone, or it is set to compute nothing"
        }
        _ => return failed("cuDevicePrimaryCtxRetain", error),
    };
    no_device(
        format!("{name} cannot be opened: {why} ({:?})", error.0),
        "see nvidia-smi for processes and compute mode, or use --backend cpu",
    )
}

/// Looks for the driver's library and starts it; the number of devices.
fn start() -> Result<i32, DriverError> {
    // SAFETY: only tries to open the library; cudarc would panic in the first call if it were missing.
    if !unsafe { sys::is_culib_present() } {
        return Err(no_device(
            "NVIDIA's driver is not installed (looked for libcuda.so.1, or nvcuda.dll on Windows)".into(),
            INSTALL,
        ));
    }
    let mut version = 0;
    // SAFETY: writes one integer.
    let code = unsafe { sys::cuDriverGetVersion(&mut version) };
    if code == sys::CUresult::CUDA_SUCCESS && version < OLDEST_DRIVER {
        return Err(no_device(
            format!(
                "the driver is too old: found CUDA {}.{}, wanted {}.{} or newer",
                version / 1000,
                version % 1000 / 10,
                OLDEST_DRIVER / 1000,
                OLDEST_DRIVER % 1000 / 10
            ),
            INSTALL,
        ));
    }
    let without_gpu = || {
        let hidden = if std::env::var_os("CUDA_VISIBLE_DEVICES").is_some() {
            " (CUDA_VISIBLE_DEVICES is set, and may hide it)"
        } else {
            ""
        };
        let detail = format!("the driver is there, but no NVIDIA GPU{hidden}");
        no_device(detail, "see what nvidia-smi lists, or use --backend cpu")
    };
    result::init().map_err(|e| {
        if e.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE {
            return without_gpu();
        }
        no_device(
            format!("the driver does not start: {}", failed("cuInit", e)),
            "check nvidia-smi; then try --backend cpu",
        )
    })?;
    let count = result::device::get_count().map_err(|e| failed("cuDeviceGetCount", e))?;
    if count == 0 {
        return Err(without_gpu());
    }
    Ok(count)
}

/// A device before it is opened.
struct Found {
    device: sys::CUdevice,
    info: DriverInfo,
    capability: (i32, i32),
    driver: i32,
}

/// One device's report, without opening a context on it.
fn describe(ordinal: i32) -> Result<Found, DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let device = result::device::get(ordinal).map_err(|e| failed("cuDeviceGet", e))?;
    let attribute = |which: Attribute| {
        // SAFETY: the device handle is the driver's own.
        unsafe { result::device::get_attribute(device, which) }.map_err(|e| failed("cuDeviceGetAttribute", e))
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK)?;
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(device) }.map_err(|e| failed("cuDeviceTotalMem", e))?;
    let mut version = 0;
    // SAFETY: writes one integer.
    let _ = unsafe { sys::cuDriverGetVersion(&mut version) };
    let info = DriverInfo {
        name: result::device::get_name(device).map_err(|e| failed("cuDeviceGetName", e))?,
        details: vec![
            ("compute capability".into(), format!("{major}.{minor}")),
            ("multiprocessors".into(), multiprocessors.to_string()),
            ("driver".into(), format!("CUDA {}.{}", version / 1000, version % 1000 / 10)),
        ],
        capability: (major, minor),
        memory_bytes: memory as u64,
        multiprocessors: u32::try_from(multiprocessors).unwrap_or(1),
        shared_bytes: u32::try_from(shared).unwrap_or(48 * 1024),
        software: false,
        matrix_units: (major, minor) >= code::MATRIX_CAPABILITY && !switched_off("matrix-units"),
        unsupported: Code::for_capability((major, minor)).is_none().then(|| {
            let (oldest_major, oldest_minor) = code::OLDEST_CAPABILITY;
            format!("compute capability {major}.{minor}, wanted {oldest_major}.{oldest_minor} or newer")
        }),
    };
    Ok(Found { device, info, capability: (major, minor), driver: version })
}

/// The GPUs, in the driver's order.
///
/// # Errors
/// [`DriverError::NoDevice`] saying what was looked for.
pub fn list() -> Result<Vec<DriverInfo>, DriverError> {
    (0..start()?).map(|i| describe(i).map(|found| found.info)).collect()
}

/// Opens a GPU.
///
/// # Errors
/// [`DriverError::NoDevice`] for no driver, one too old, no such GPU, or a chip that the kernels do not run on.
pub fn open(ordinal: usize) -> Result<Arc<dyn Driver>, DriverError> {
    let count = start()?;
    let Some(index) = i32::try_from(ordinal).ok().filter(|i| *i < count) else {
        return Err(no_device(
            format!("no GPU {ordinal}, of {count}"),
            "`moe-run devices` lists them, from 0 on",
        ));
    };
    let Found { device, mut info, capability, driver } = describe(index)?;
    let Some(embedded) = Code::for_capability(capability) else {
        let why = info.unsupported.unwrap_or_default();
        return Err(no_device(format!("{} has {why}", info.name), "use --backend cpu or --backend wgpu"));
    };
    let overlap = embedded.capability() >= code::OVERLAP_CAPABILITY
        && driver >= OLDEST_OVERLAP_DRIVER
        && !switched_off("overlap");
    let (major, minor) = embedded.capability();
    info.details.extend([
        ("code".into(), format!("compute_{major}{minor} of sources {}", embedded.sources().unwrap_or("?"))),
        ("overlapping launches".into(), if overlap { "yes" } else { "no" }.into()),
        ("matrix units".into(), if info.matrix_units { "yes" } else { "no" }.into()),
    ]);
    let shared = Shared::on(index, device, embedded).map_err(|e| not_opened(&info.name, e))?;
    shared.enter()?;
    let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
        .map_err(|e| failed("cuStreamCreate", e))?;
    Ok(Arc::new(Nvidia(Arc::new(Inner { info, stream, overlap, shared }))))
}

/// What a process has once on a device: the context, and the modules that were loaded into it.
struct Shared {
    device: sys::CUdevice,
    context: sys::CUcontext,
    modules: Modules,
}

/// The devices that are open, by number.
static SHARED: Mutex<BTreeMap<i32, Weak<Shared>>> = Mutex::new(BTreeMap::new());

impl Shared {
    /// What is open of a device, or a context on it.
    fn on(index: i32, device: sys::CUdevice, code: Code) -> Result<Arc<Shared>, result::DriverError> {
        let mut all = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = all.get(&index).and_then(Weak::upgrade) {
            return Ok(shared);
        }
        // SAFETY: the device handle is valid; the context is released when this object is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }?;
        let shared = Arc::new(Shared { device, context, modules: Modules::new(code) });
        all.insert(index, Arc::downgrade(&shared));
        Ok(shared)
    }

    fn enter(&self) -> Result<(), DriverError> {
        // SAFETY: the context lives as long as this object.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| failed("cuCtxSetCurrent", e))
    }
}

// SAFETY: the handles are the driver's, which may be used from any thread that has set the context, as every call does.
unsafe impl Send for Shared {}
// SAFETY: as above; `modules` has its own locks.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = self.enter();
        // SAFETY: no stream is left, so nothing is queued any more, and no handle is used after this.
        unsafe {
            self.modules.unload();
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

struct Inner {
    info: DriverInfo,
    stream: sys::CUstream,
    /// Kernels may start before the one in front has ended.
    overlap: bool,
    shared: Arc<Shared>,
}

// SAFETY: the handles are the driver's, which may be used from any thread that has set the context, as every call does.
unsafe impl Send for Inner {}
// SAFETY: as above; the driver serialises calls on one stream.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.enter();
        // SAFETY: the stream is used by nobody after this; `shared` keeps its context until then.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            let _ = result::stream::destroy(self.stream);
        }
    }
}

impl Inner {
    fn enter(&self) -> Result<(), DriverError> {
        self.shared.enter()
    }

    fn queue(&self, launches: &[KernelLaunch]) -> Result<(), DriverError> {
        for launch in launches {
            let function = self.shared.modules.function(launch.kernel)?;
            if launch.shared_bytes > self.info.shared_bytes {
                return Err(DriverError::Failed(format!(
                    "kernel {}: {} bytes of shared memory, a block may have {}",
                    launch.kernel, launch.shared_bytes, self.info.shared_bytes
                )));
            }
            // Every parameter is 4 or 8 bytes, little-endian, at the start of its word.
            let mut words: Vec<u64> = launch
                .params
                .iter()
                .map(|p| match *p {
                    Param::Memory { address, .. } => address,
                    Param::I32(v) => u64::from(v as u32),
                    Param::F32(v) => u64::from(v.to_bits()),
                    Param::U64(v) => v,
                })
                .collect();
            let mut pointers: Vec<*mut c_void> =
                words.iter_mut().map(|w| std::ptr::from_mut(w).cast()).collect();
            let [x, y, z] = launch.grid;
            // SAFETY: an all-zero attribute is a valid one: plain numbers and a union of plain numbers.
            let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
            attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attribute.value.programmaticStreamSerializationAllowed = 1;
            let config = sys::CUlaunchConfig {
                gridDimX: x,
                gridDimY: y,
                gridDimZ: z,
                blockDimX: launch.threads,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: launch.shared_bytes,
                hStream: self.stream,
                attrs: &mut attribute,
                numAttrs: u32::from(self.overlap),
            };
            // SAFETY: the function belongs to a loaded module; the driver copies configuration and parameters before it
            // returns; the parameters' number and kinds are those of the kernel, which the host harness checks for every
            // launch that this backend can make, and the memory that they name outlives the queued work.
            unsafe { sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), std::ptr::null_mut()) }
                .result()
                .map_err(|e| failed(&format!("launching kernel {}", launch.kernel), e))?;
        }
        Ok(())
    }
}

struct Nvidia(Arc<Inner>);

struct Recorded {
    inner: Arc<Inner>,
    graph: sys::CUgraphExec,
}

// SAFETY: a graph may be launched from any thread that has set the context; one thread at a time has it.
unsafe impl Send for Recorded {}

impl CapturedGraph for Recorded {
    fn replay(&self) -> Result<(), DriverError> {
        self.inner.enter()?;
        // SAFETY: graph and stream live as long as `inner`.
        unsafe { result::graph::launch(self.graph, self.inner.stream) }
            .map_err(|e| failed("cuGraphLaunch", e))
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if self.inner.enter().is_ok() {
            // SAFETY: the driver keeps a graph that is still running until it has ended.
            let _ = unsafe { result::graph::exec_destroy(self.graph) };
        }
    }
}

/// An event that destroys itself; its context is the current one of whoever drops it.
struct Event(sys::CUevent);

impl Event {
    /// One that tells when it was reached.
    fn timed() -> Result<Event, DriverError> {
        Event::new(sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// One that is only waited for; the device then writes no time.
    fn untimed() -> Result<Event, DriverError> {
        Event::new(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn new(flags: sys::CUevent_flags) -> Result<Event, DriverError> {
        result::event::create(flags).map(Event).map_err(|e| failed("cuEventCreate", e))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`, used nowhere after this.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

impl Driver for Nvidia {
    fn info(&self) -> &DriverInfo {
        &self.0.info
    }

    fn load_kernels(&self, kernels: &[&'static str], progress: Option<&(dyn Fn(Progress) + Send + Sync)>) {
        // The driver's compiler works on several modules at a time.
        const THREADS: usize = 8;
        let shared = &self.0.shared;
        let wanted = shared.modules.not_loaded(kernels);
        let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..THREADS.min(wanted.len()) {
                scope.spawn(|| {
                    if shared.enter().is_err() {
                        return;
                    }
                    while let Some(module) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                        shared.modules.load(*module);
                        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                        if let Some(progress) = progress {
                            let total = wanted.len() as u64;
                            progress(Progress { done, total, what: "compiling kernels" });
                        }
                    }
                });
            }
        });
    }

    fn resident_blocks(
        &self,
        kernel: &'static str,
        threads: u32,
        shared_bytes: u32,
    ) -> Result<u32, DriverError> {
        self.0.enter()?;
        self.0.shared.modules.resident_blocks(kernel, threads, shared_bytes)
    }

    fn memory(&self) -> Result<(u64, u64), DriverError> {
        self.0.enter()?;
        let (free, total) = result::mem_get_info().map_err(|e| failed("cuMemGetInfo", e))?;
        Ok((free as u64, total as u64))
    }

    fn allocate(&self, bytes: u64) -> Result<u64, DriverError> {
        self.0.enter()?;
        let elems = usize::try_from(bytes)
            .map_err(|_| DriverError::OutOfMemory { wanted_bytes: bytes, free_bytes: 0 })?;
        // SAFETY: memory is only written to through this driver.
        unsafe { result::malloc_sync(elems) }.map_err(|e| {
            if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                let free_bytes = self.memory().map_or(0, |(free, _)| free);
                return DriverError::OutOfMemory { wanted_bytes: bytes, free_bytes };
            }
            failed("cuMemAlloc", e)
        })
    }

    fn free(&self, address: u64) {
        if self.0.enter().is_ok() {
            // SAFETY: `allocate` made it; cuMemFree waits for the work that uses it. After a sticky error the driver
            // refuses, and frees everything with the context.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    fn upload(&self, address: u64, bytes: &[u8]) -> Result<(), DriverError> {
        self.0.enter()?;
        // SAFETY: the address is of an allocation at least as long, by the callers' arithmetic; a copy from pageable
        // memory has read its source when it returns.
        unsafe { result::memcpy_htod_async(address, bytes, self.0.stream) }
            .map_err(|e| failed("copy to the device", e))
    }

    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<(), DriverError> {
        self.0.enter()?;
        // SAFETY: as for `upload`; the stream is waited for before the slice is used.
        unsafe {
            result::memcpy_dtoh_async(bytes, address, self.0.stream)
                .and_then(|()| result::stream::synchronize(self.0.stream))
        }
        .map_err(|e| failed("copy from the device", e))
    }

    fn staging(&self, bytes: usize) -> Result<Box<dyn Staging>, DriverError> {
        Ok(Box::new(Pinned::new(&self.0, bytes, "copy to the device")?))
    }

    fn mailbox(&self, bytes: usize) -> Result<Box<dyn Mailbox>, DriverError> {
        let pinned = Pinned::new(&self.0, bytes, "copy from the device")?;
        Ok(Box::new(Letter { pinned, posted_bytes: 0 }))
    }

    fn copy_bytes_per_second(&self, bytes: u64) -> Result<f64, DriverError> {
        const PASSES: u32 = 5;
        let source = self.allocate(bytes)?;
        let target = self.allocate(bytes).inspect_err(|_| self.free(source))?;
        let copy = || -> Result<f64, DriverError> {
            self.clear(source, bytes)?;
            let (start, end) = (Event::timed()?, Event::timed()?);
            let mut best = f32::INFINITY;
            for _ in 0..PASSES {
                // SAFETY: both allocations are of that size; events and stream are live; the end is waited for.
                let milliseconds = unsafe {
                    result::event::record(start.0, self.0.stream)
                        .and_then(|()| {
                            result::memcpy_dtod_async(target, source, bytes as usize, self.0.stream)
                        })
                        .and_then(|()| result::event::record(end.0, self.0.stream))
                        .and_then(|()| result::event::synchronize(end.0))
                        .and_then(|()| result::event::elapsed(start.0, end.0))
                }
                .map_err(|e| failed("copy within the device", e))?;
                best = best.min(milliseconds);
            }
            Ok(2.0 * bytes as f64 / (f64::from(best.max(1e-6)) / 1000.0))
        };
        let measured = copy();
        self.free(source);
        self.free(target);
        measured
    }

    fn clear(&self, address: u64, bytes: u64) -> Result<(), DriverError> {
        self.0.enter()?;
        // SAFETY: as for `upload`.
        unsafe { result::memset_d8_async(address, 0, bytes as usize, self.0.stream) }
            .map_err(|e| failed("clearing memory", e))
    }

    fn launch(&self, launches: &[KernelLaunch]) -> Result<(), DriverError> {
        self.0.enter()?;
        self.0.queue(launches)
    }

    fn launch_timed(&self, launches: &[KernelLaunch]) -> Result<Duration, DriverError> {
        self.0.enter()?;
        let (start, end) = (Event::timed()?, Event::timed()?);
        // SAFETY: both events and the stream are live.
        unsafe { result::event::record(start.0, self.0.stream) }.map_err(|e| failed("cuEventRecord", e))?;
        self.0.queue(launches)?;
        // SAFETY: as above; the end is waited for before the time is asked.
        let milliseconds = unsafe {
            result::event::record(end.0, self.0.stream)
                .and_then(|()| result::event::synchronize(end.0))
                .and_then(|()| result::event::elapsed(start.0, end.0))
        }
        .map_err(|e| failed("running kernels", e))?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1000.0))
    }

    fn capture(&self, launches: &[KernelLaunch]) -> Result<Box<dyn CapturedGraph>, DriverError> {
        self.0.enter()?;
        // Loading a module is not allowed while a stream is being recorded.
        for launch in launches {
            self.0.shared.modules.function(launch.kernel)?;
        }
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live and not being recorded.
        unsafe { result::stream::begin_capture(self.0.stream, mode) }
            .map_err(|e| failed("cuStreamBeginCapture", e))?;
        let queued = self.0.queue(launches);
        // SAFETY: ends what was begun above, also when a launch was refused.
        let graph = unsafe { result::stream::end_capture(self.0.stream) };
        let made = queued.and_then(|()| {
            let graph = graph.map_err(|e| failed("cuStreamEndCapture", e))?;
            // SAFETY: the graph is complete.
            unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) }
                .map_err(|e| failed("cuGraphInstantiate", e))
        });
        if let Ok(graph) = graph {
            // SAFETY: made above; the executable form does not need it any more.
            let _ = unsafe { result::graph::destroy(graph) };
        }
        Ok(Box::new(Recorded { inner: Arc::clone(&self.0), graph: made? }))
    }

    fn synchronize(&self) -> Result<(), DriverError> {
        self.0.enter()?;
        // SAFETY: the stream is live.
        unsafe { result::stream::synchronize(self.0.stream) }.map_err(|e| failed("running kernels", e))
    }
}
