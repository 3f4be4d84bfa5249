//! The CUDA backend: stage 5 on NVIDIA GPUs, or on the host harness that runs the same kernels on the processor.
//!
//! Input: a graph, its weights, options. Output: an executable whose steps are lists of kernel launches; a decode step is
//! recorded once and replayed. Weights keep their format on the device and are decoded inside the products.
//! Deliberately absent: several devices, 8-bit activations in blocks of 256 (GPUs take 32 everywhere).

mod choices;
mod choose;
mod compile;
mod device;
pub mod driver;
mod dry;
mod groups;
mod load;
mod ops;
mod planes;
mod plans;
pub mod predict;
mod state;
#[cfg(all(test, moe_host_harness))]
mod tests;
mod upload;
mod values;
mod weights;

use moe_run_graph::dump::KernelInfo;
use moe_run_graph::ir::{Graph, LaunchPattern, Node};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::{ActBlock, ActProfile};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{Activations, Backend, CompileOptions, DeviceInfo, WeightSource, Weights};
use moe_run_runtime::sharing::{Opens, Sharing};
use std::sync::Arc;

/// The backend's name.
pub const NAME: &str = "cuda";
/// What `--device` takes for the host harness.
pub const HOST_HARNESS: &str = "host-harness";

/// The CUDA backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cuda;

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        NAME
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        device::list()
    }

    fn patterns(&self, tokens: usize, options: &CompileOptions) -> Vec<LaunchPattern> {
        groups::patterns(tokens, profile(options), options.kv_type)
    }

    fn profile(&self, options: &CompileOptions) -> ActProfile {
        profile(options)
    }

    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), BackendError> {
        ops::supports(graph, node)
    }

    fn q8_super_blocks(&self) -> &'static [ActBlock] {
        &[ActBlock::X32]
    }

    fn kernel(&self, plan: &Plan, launch: &Launch, options: &CompileOptions) -> Option<KernelInfo> {
        let nodes: Vec<&Node> = plan.launch_nodes(launch).collect();
        let name = match nodes.as_slice() {
            [node] => ops::kernel_name(&plan.graph, node, plan.max_sizes.tokens, profile(options)),
            _ => groups::kernel_name(launch.pattern)?.to_owned(),
        };
        Some(KernelInfo { name, grid: None, workgroup: None, dispatches: None, source: None })
    }

    fn load(
        &self,
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Arc<dyn Weights>, BackendError> {
        let open = || self.open(options.device.as_deref());
        self.load_on(&open, graph, source.as_ref(), options)
    }

    fn sharing(&self) -> Option<Box<dyn Backend>> {
        Some(Box::new(Sharing::new(*self)))
    }
}

impl Opens for Cuda {
    /// A context with its stream and loaded kernels.
    type Opened = Arc<dyn driver::Driver>;

    fn open(&self, device: Option<&str>) -> Result<Self::Opened, BackendError> {
        device::open(device)
    }

    /// A context that failed fails for the whole process: opening it anew would not help.
    fn is_sound(_: &Self::Opened) -> bool {
        true
    }

    fn load_on(
        &self,
        open: &dyn Fn() -> Result<Self::Opened, BackendError>,
        graph: &Graph,
        source: &dyn WeightSource,
        options: &CompileOptions,
    ) -> Result<Arc<dyn Weights>, BackendError> {
        Ok(Arc::new(load::load(open, graph, source, options)?))
    }
}

/// The activations of these options; 8-bit ones in blocks of 32 where they name none.
fn profile(options: &CompileOptions) -> ActProfile {
    options.profile(Activations::Q8, ActBlock::X32)
}
