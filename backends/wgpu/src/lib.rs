//! Stage 5 on wgpu: Vulkan, Metal and DX12.
//!
//! Input: a graph, its weights and options. Output: an executable whose launches are WGSL compute shaders from
//! `shaders/`. All activations lie in one arena buffer at places known when the graph is compiled; a step is one compute
//! pass and one submission. Deliberately absent: any computation of an op on the host.

mod choose;
mod compile;
mod device;
mod disk_cache;
mod emit;
mod executable;
mod groups;
mod layout;
mod load;
mod opened;
mod ops;
mod params;
mod pipelines;
mod plans;
mod program;
mod rows;
pub mod shader;
mod state;
mod weight_map;
mod weights;

#[cfg(test)]
mod tests;

pub use device::{Faults, WgpuOptions};
pub use shader::Features;

use moe_run_graph::dump::KernelInfo;
use moe_run_graph::ir::{Graph, LaunchPattern, Node};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::{ActBlock, ActProfile};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    Activations, Backend, CompileOptions, DeviceInfo, WeightSource, Weights, check_step_operands,
};
use moe_run_runtime::sharing::{Opens, Sharing};
use opened::Opened;
use std::sync::Arc;

/// The backend's name.
pub const NAME: &str = "wgpu";

/// The wgpu backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wgpu {
    /// What it may use.
    pub options: WgpuOptions,
}

impl Backend for Wgpu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        device::list(&self.options)
    }

    fn patterns(&self, tokens: usize, options: &CompileOptions) -> Vec<LaunchPattern> {
        groups::for_tokens(tokens, options.kv_type)
    }

    fn profile(&self, options: &CompileOptions) -> ActProfile {
        profile(options)
    }

    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), BackendError> {
        supports(graph, node)
    }

    fn q8_super_blocks(&self) -> &'static [ActBlock] {
        &[ActBlock::X32]
    }

    fn kernel(&self, plan: &Plan, launch: &Launch, options: &CompileOptions) -> Option<KernelInfo> {
        plans::kernel(plan, launch, profile(options), options.kv_type)
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

impl Opens for Wgpu {
    type Opened = Opened;

    fn open(&self, device: Option<&str>) -> Result<Opened, BackendError> {
        Ok(Opened::new(device::Device::open(device, &self.options)?))
    }

    fn is_sound(opened: &Opened) -> bool {
        opened.device.check().is_ok()
    }

    fn load_on(
        &self,
        open: &dyn Fn() -> Result<Opened, BackendError>,
        graph: &Graph,
        source: &dyn WeightSource,
        options: &CompileOptions,
    ) -> Result<Arc<dyn Weights>, BackendError> {
        Ok(Arc::new(load::load(open, graph, source, options)?))
    }
}

/// Whether the shaders can run a node, whatever the device.
fn supports(graph: &Graph, node: &Node) -> Result<(), BackendError> {
    check_step_operands(NAME, graph, node)?;
    match ops::lacking(graph, node) {
        None => Ok(()),
        Some(detail) => {
            Err(BackendError::Unsupported { backend: NAME, node: node.path(), op: node.op.stem(), detail })
        }
    }
}

/// The activations of these options; 8-bit ones in blocks of 32 where they name none.
fn profile(options: &CompileOptions) -> ActProfile {
    options.profile(Activations::Q8, ActBlock::X32)
}
