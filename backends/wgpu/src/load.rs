//! Stage 5, wgpu: a graph's weights to a device, and graphs compiled from them.

use super::compile::compile;
use super::executable::WgpuExecutable;
use super::opened::Opened;
use super::plans::{self, Plans};
use super::weight_map::WeightMap;
use super::weights::WgpuWeights;
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    CompileOptions, Executable, WeightSource, WeightTable, Weights, check_weights,
};

/// Uploads the weights of a graph to the device that `open` gives, once it is known that the graph can run there.
pub(super) fn load(
    open: &dyn Fn() -> Result<Opened, BackendError>,
    graph: &Graph,
    source: &dyn WeightSource,
    options: &CompileOptions,
) -> Result<WgpuWeights, BackendError> {
    plans::check(graph, options)?;
    check_weights(graph, source)?;
    let opened = open()?;
    let device = &opened.device;
    let table = WeightTable::new(graph);
    let map = WeightMap::new(&table, device.max_tensor_bytes)?;
    Plans::new(device, graph, &map, options)?.tell_opened(device, graph, options, false);
    WgpuWeights::upload(opened, graph, table, map, source, options.progress.as_deref())
}

impl WgpuWeights {
    /// [`Weights::compile`], not boxed.
    pub fn executable(
        &self,
        graph: &Graph,
        options: &CompileOptions,
    ) -> Result<WgpuExecutable, BackendError> {
        plans::check(graph, options)?;
        compile(self, graph, options)
    }
}

impl Weights for WgpuWeights {
    fn size_bytes(&self) -> u64 {
        self.size_bytes()
    }

    fn compile(&self, graph: &Graph, options: &CompileOptions) -> Result<Box<dyn Executable>, BackendError> {
        Ok(Box::new(self.executable(graph, options)?))
    }
}
