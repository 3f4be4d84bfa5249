//! A graph's weights to a device, and graphs compiled from them.

use super::compile::{CudaExecutable, compile};
use super::driver::Driver;
use super::dry;
use super::plans::{self, Plans};
use super::upload::wanted_bytes;
use super::weights::CudaWeights;
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    CompileOptions, Executable, WeightSource, WeightTable, Weights, check_weights,
};
use std::sync::Arc;

/// Uploads the weights of a graph to the device that `open` gives, once it is known that the graph can run there.
pub(super) fn load(
    open: &dyn Fn() -> Result<Arc<dyn Driver>, BackendError>,
    graph: &Graph,
    source: &dyn WeightSource,
    options: &CompileOptions,
) -> Result<CudaWeights, BackendError> {
    plans::check(graph, options)?;
    check_weights(graph, source)?;
    let driver = open()?;
    let table = WeightTable::new(graph);
    let plans = Plans::new(&*driver, graph, wanted_bytes(&table), options)?;
    let memory = plans.check_memory(&*driver, options, false)?;
    options.tell_opened(&plans.info, "", graph, memory);
    let kernels = dry::kernels(&plans, driver.info())?;
    CudaWeights::upload(driver, table, source, &kernels, options.progress.as_deref())
}

impl CudaWeights {
    /// [`Weights::compile`], not boxed.
    pub fn executable(
        &self,
        graph: &Graph,
        options: &CompileOptions,
    ) -> Result<CudaExecutable, BackendError> {
        plans::check(graph, options)?;
        compile(self, graph, options)
    }
}

impl Weights for CudaWeights {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn compile(&self, graph: &Graph, options: &CompileOptions) -> Result<Box<dyn Executable>, BackendError> {
        Ok(Box::new(self.executable(graph, options)?))
    }
}
