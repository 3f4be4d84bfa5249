//! Shared helpers of the tests: fixtures, stage files, running a model with every tap collected.
//!
//! Fixtures live in `tests/fixtures` and `tests/models`. Those too large to be carried lie in the folder that the
//! environment variable `MOE_FIXTURES` names; a test that wants one which is not there says so loudly and is skipped.

pub mod chat_case;
pub mod cli;
pub mod collect;
pub mod faults;
pub mod fixtures;
pub mod http;
pub mod random;
pub mod random_shapes;
pub mod recurrent;
pub mod stages;
pub mod stand_in;

use moe_run_backends::cuda::{Cuda, HOST_HARNESS};
use moe_run_backends::{
    Backend, BackendError, CompileOptions, DeviceInfo, DeviceKind, WeightSource, Weights, registry,
};
use moe_run_graph::dump::KernelInfo;
use moe_run_graph::ir::{Graph, LaunchPattern, Node};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::{ActBlock, ActProfile};
use std::sync::Arc;

/// The CUDA backend on the host harness: the same kernels and launches, run on the processor.
#[derive(Debug, Clone, Copy, Default)]
pub struct CudaHarness;

impl Backend for CudaHarness {
    fn name(&self) -> &'static str {
        Cuda.name()
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        Ok(vec![DeviceInfo {
            backend: Cuda.name(),
            index: 0,
            name: HOST_HARNESS.into(),
            kind: DeviceKind::Software,
            details: Vec::new(),
            memory_bytes: None,
        }])
    }

    fn patterns(&self, tokens: usize, options: &CompileOptions) -> Vec<LaunchPattern> {
        Cuda.patterns(tokens, options)
    }

    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), BackendError> {
        Cuda.supports(graph, node)
    }

    fn q8_super_blocks(&self) -> &'static [ActBlock] {
        Cuda.q8_super_blocks()
    }

    fn profile(&self, options: &CompileOptions) -> ActProfile {
        Cuda.profile(options)
    }

    fn kernel(&self, plan: &Plan, launch: &Launch, options: &CompileOptions) -> Option<KernelInfo> {
        Cuda.kernel(plan, launch, options)
    }

    fn load(
        &self,
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Arc<dyn Weights>, BackendError> {
        let options = CompileOptions { device: Some(HOST_HARNESS.into()), ..options.clone() };
        Cuda.load(graph, source, &options)
    }
}

/// Every backend of this build that has a device here, opened once for all that is compiled; CUDA's on the host harness, which
/// every machine has.
#[must_use]
pub fn backends() -> Vec<Box<dyn Backend>> {
    let harness = |backend: Box<dyn Backend>| -> Box<dyn Backend> {
        if backend.name() == Cuda.name() { Box::new(CudaHarness) } else { backend }
    };
    let with_device = |backend: &dyn Backend| -> bool {
        let found = backend.devices().is_ok_and(|d| !d.is_empty());
        if !found {
            println!("SKIPPED: no device of backend {}", backend.name());
        }
        found
    };
    let sharing = |backend: Box<dyn Backend>| backend.sharing().unwrap_or(backend);
    registry::all().into_iter().map(harness).filter(|b| with_device(b.as_ref())).map(sharing).collect()
}

/// A backend, and the device that tests run it on.
pub struct Subject {
    /// The backend.
    pub backend: Box<dyn Backend>,
    /// What `--device` would be; `None` is the backend's own choice.
    pub device: Option<String>,
}

impl Subject {
    /// Whether every device of the backend is a GPU interface run by the processor.
    #[must_use]
    pub fn in_software(&self) -> bool {
        self.backend.devices().is_ok_and(|d| d.iter().all(|d| d.kind == DeviceKind::Software))
    }
}

/// [`backends`] with their devices.
#[must_use]
pub fn every_subject() -> Vec<Subject> {
    let subject = |backend: Box<dyn Backend>| {
        let device = (backend.name() == Cuda.name()).then(|| HOST_HARNESS.to_owned());
        Subject { backend, device }
    };
    backends().into_iter().map(subject).collect()
}

/// [`every_subject`], for matrices of many runs. GPUs in software are hundreds of times slower than the rest: here they
/// run with `--full` only, and a line says so.
#[must_use]
pub fn subjects() -> Vec<Subject> {
    let in_time = |subject: &Subject| {
        let software = subject.in_software();
        if software && !fixtures::full() {
            println!(
                "SKIPPED: backend {} in software (scripts/test.sh --full runs it)",
                subject.backend.name()
            );
        }
        !software || fixtures::full()
    };
    every_subject().into_iter().filter(in_time).collect()
}

/// Relative L2 distance ‖a − b‖ / ‖b‖ in f64; infinite where either side is not finite or the lengths differ.
#[must_use]
pub fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() || a.iter().chain(b).any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| f64::from(*b).powi(2)).sum();
    if norm == 0.0 {
        return if difference == 0.0 { 0.0 } else { f64::INFINITY };
    }
    (difference / norm).sqrt()
}
