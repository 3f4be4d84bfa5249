//! The backend over a driver that lacks something or fails on purpose: kernels without matrix units, memory that does not
//! suffice, launches and uploads that fail; and one that counts what is asked of it.

#![expect(clippy::unwrap_used, reason = "test helpers stop the test")]

use super::compile::CudaExecutable;
use super::driver::{
    CapturedGraph, Driver, DriverError, DriverInfo, KernelLaunch, Mailbox, Staging, harness,
};
use super::load::load;
use moe_run_graph::ir::Graph;
use moe_run_graph::quant::Format;
use moe_run_inspect::cases::{self, OpCase};
use moe_run_reference::Reference;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{Activations, CompileOptions, Executable, KvType, WeightSource};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

mod choice;
#[path = "../../../tests/src/loaded_once.rs"]
mod loaded_once;
mod schedules;
mod weights;

/// What a driver was asked for.
#[derive(Default)]
struct Counts {
    /// Kernels, each launched by itself.
    launched: AtomicUsize,
    captured: AtomicUsize,
    replayed: AtomicUsize,
    /// Copies that the host waits for while it makes them.
    downloads: AtomicUsize,
    posted: AtomicUsize,
    posted_bytes: AtomicUsize,
    /// Bytes of weights that keep their format.
    staged_bytes: AtomicUsize,
}

impl Counts {
    /// Launched, captured, replayed, downloads, posted, posted bytes.
    fn all(&self) -> [usize; 6] {
        let Counts { launched, captured, replayed, downloads, posted, posted_bytes, staged_bytes: _ } = self;
        [launched, captured, replayed, downloads, posted, posted_bytes].map(|n| n.load(Ordering::Relaxed))
    }
}

struct Counted<T>(T, Arc<Counts>);

impl CapturedGraph for Counted<Box<dyn CapturedGraph>> {
    fn replay(&self) -> Result<(), DriverError> {
        self.1.replayed.fetch_add(1, Ordering::Relaxed);
        self.0.replay()
    }
}

impl Mailbox for Counted<Box<dyn Mailbox>> {
    fn post(&mut self, parts: &[(u64, usize)]) -> Result<(), DriverError> {
        self.1.posted.fetch_add(parts.len(), Ordering::Relaxed);
        self.1.posted_bytes.fetch_add(parts.iter().map(|p| p.1).sum(), Ordering::Relaxed);
        self.0.post(parts)
    }

    fn read(&mut self) -> Result<Vec<u8>, DriverError> {
        self.0.read()
    }
}

/// The harness, changed.
struct Changed {
    inner: Arc<dyn Driver>,
    info: DriverInfo,
    free_bytes: Option<u64>,
    /// Launches and copies until one fails; `usize::MAX`: none does.
    launches_left: AtomicUsize,
    copies_left: Arc<AtomicUsize>,
    counts: Arc<Counts>,
}

impl Changed {
    fn new() -> Changed {
        let inner = harness::open().unwrap();
        let info = inner.info().clone();
        let never = || AtomicUsize::new(usize::MAX);
        let (launches_left, copies_left) = (never(), Arc::new(never()));
        Changed { inner, info, free_bytes: None, launches_left, copies_left, counts: Arc::default() }
    }

    fn count(left: &AtomicUsize, what: &str) -> Result<(), DriverError> {
        let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| match n {
            usize::MAX => Some(n),
            n => n.checked_sub(1),
        });
        taken.map(|_| ()).map_err(|_| DriverError::Failed(format!("{what}: made to fail")))
    }
}

struct FailingStaging(Box<dyn Staging>, Arc<AtomicUsize>, Arc<Counts>);

impl Staging for FailingStaging {
    fn memory(&mut self) -> Result<&mut [u8], DriverError> {
        self.0.memory()
    }

    fn send(&mut self, address: u64, bytes: usize) -> Result<(), DriverError> {
        Changed::count(&self.1, "copy to the device")?;
        self.2.staged_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.0.send(address, bytes)
    }
}

impl Driver for Changed {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn resident_blocks(&self, kernel: &'static str, threads: u32, bytes: u32) -> Result<u32, DriverError> {
        self.inner.resident_blocks(kernel, threads, bytes)
    }

    fn memory(&self) -> Result<(u64, u64), DriverError> {
        let (free, all) = self.inner.memory()?;
        Ok((self.free_bytes.unwrap_or(free), all))
    }

    fn allocate(&self, bytes: u64) -> Result<u64, DriverError> {
        self.inner.allocate(bytes)
    }

    fn free(&self, address: u64) {
        self.inner.free(address);
    }

    fn upload(&self, address: u64, bytes: &[u8]) -> Result<(), DriverError> {
        self.inner.upload(address, bytes)
    }

    fn staging(&self, bytes: usize) -> Result<Box<dyn Staging>, DriverError> {
        let (copies_left, counts) = (Arc::clone(&self.copies_left), Arc::clone(&self.counts));
        Ok(Box::new(FailingStaging(self.inner.staging(bytes)?, copies_left, counts)))
    }

    fn mailbox(&self, bytes: usize) -> Result<Box<dyn Mailbox>, DriverError> {
        Ok(Box::new(Counted(self.inner.mailbox(bytes)?, Arc::clone(&self.counts))))
    }

    fn copy_bytes_per_second(&self, bytes: u64) -> Result<f64, DriverError> {
        self.inner.copy_bytes_per_second(bytes)
    }

    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<(), DriverError> {
        self.counts.downloads.fetch_add(1, Ordering::Relaxed);
        self.inner.download(address, bytes)
    }

    fn clear(&self, address: u64, bytes: u64) -> Result<(), DriverError> {
        self.inner.clear(address, bytes)
    }

    fn launch(&self, launches: &[KernelLaunch]) -> Result<(), DriverError> {
        launches.iter().try_for_each(|_| Changed::count(&self.launches_left, "launch"))?;
        self.counts.launched.fetch_add(launches.len(), Ordering::Relaxed);
        self.inner.launch(launches)
    }

    fn launch_timed(&self, launches: &[KernelLaunch]) -> Result<Duration, DriverError> {
        launches.iter().try_for_each(|_| Changed::count(&self.launches_left, "launch"))?;
        self.inner.launch_timed(launches)
    }

    fn capture(&self, launches: &[KernelLaunch]) -> Result<Box<dyn CapturedGraph>, DriverError> {
        self.counts.captured.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Counted(self.inner.capture(launches)?, Arc::clone(&self.counts))))
    }

    fn synchronize(&self) -> Result<(), DriverError> {
        self.inner.synchronize()
    }
}

fn options(case: &OpCase, activations: Activations, kv_type: KvType) -> CompileOptions {
    let max = |f: fn(&cases::CaseStep) -> usize| case.steps.iter().map(f).max().unwrap_or(1).max(1);
    CompileOptions {
        ctx_size: case.ctx_size,
        micro_batch: Some(max(|s| s.tokens.len())),
        max_logits_rows: max(|s| s.logits_rows.len()),
        activations: Some(activations),
        kv_type,
        ..CompileOptions::default()
    }
}

fn compiled(case: &OpCase, driver: Changed) -> Result<CudaExecutable, BackendError> {
    let options = options(case, Activations::Q8, KvType::F16);
    compile(Arc::new(driver), &case.graph, case.weights.as_ref(), &options)
}

/// Loads the weights to a driver and compiles the graph from them.
fn compile(
    driver: Arc<dyn Driver>,
    graph: &Graph,
    source: &dyn WeightSource,
    options: &CompileOptions,
) -> Result<CudaExecutable, BackendError> {
    load(&|| Ok(Arc::clone(&driver)), graph, source, options)?.executable(graph, options)
}

/// The text of an error that must come.
fn refused<T>(result: Result<T, BackendError>) -> String {
    match result {
        Err(error) => error.to_string(),
        Ok(_) => panic!("nothing failed"),
    }
}

/// Chips before 8.0 have other kernels for many tokens: the same cases on them.
#[test]
fn kernels_of_chips_without_matrix_units() {
    let formats = [Format::Q4_0, Format::Q4K, Format::Q6K, Format::Q8_0, Format::Mxfp4, Format::Q3K];
    let ops = ["matmul", "expert_matmul"].into_iter().flat_map(|op| formats.map(|format| (op, format)));
    for (op, format) in ops.chain([("attention", Format::F32)]) {
        let mut seen = 0;
        for seed in 0..12 {
            let case = cases::case(op, format, seed).unwrap().unwrap();
            let mut driver = Changed::new();
            driver.info.matrix_units = false;
            let mut executable = match compiled(&case, driver) {
                Ok(executable) if seen < 6 => executable,
                // Heads of sizes that no kernel has.
                Ok(_) | Err(BackendError::Unsupported { .. }) => continue,
                Err(error) => panic!("{}: {error}", case.name),
            };
            seen += 1;
            let found = cases::run_steps(&case, &mut executable).unwrap();
            let wanted = cases::run(&case, &Reference, &cases::same_definition(executable.info())).unwrap();
            for (found, wanted) in found.iter().zip(&wanted) {
                let distance = cases::distance(found, wanted);
                assert!(distance <= cases::TOLERANCE, "{}: {distance:e}", case.name);
            }
        }
        assert!(seen >= 4, "{op}: {seen} of 12 cases ran");
    }
}

#[test]
fn memory_that_does_not_suffice_is_counted_up() {
    let case = cases::case("attention", Format::F32, 1).unwrap().unwrap();
    let mut driver = Changed::new();
    driver.free_bytes = Some(1000);
    let text = refused(compiled(&case, driver));
    for wanted in ["bytes of weights", "of working memory", "of KV cache for", "1000"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
}

#[test]
fn a_failed_launch_names_its_operation() {
    let case = (0..50)
        .filter_map(|seed| cases::case("matmul", Format::Q4K, seed).unwrap())
        .find(|case| case.steps[0].tokens.len() > 1)
        .unwrap();
    let driver = Changed::new();
    driver.launches_left.store(1, Ordering::Relaxed);
    let mut executable = compiled(&case, driver).unwrap();
    let text = refused(cases::run_steps(&case, &mut executable));
    assert!(text.contains("proj (matmul)") && text.contains("made to fail"), "{text}");
}

#[test]
fn a_failed_upload_is_reported() {
    let case = cases::case("matmul", Format::Q6K, 3).unwrap().unwrap();
    let driver = Changed::new();
    driver.copies_left.store(0, Ordering::Relaxed);
    let text = refused(compiled(&case, driver));
    assert!(text.contains("copy to the device: made to fail"), "{text}");
}
