//! Weights on the device: uploaded once, and the view of them that each executable's kernels have.

use super::driver::{DeviceBuffer, Driver, DriverError, Param};
use super::{device, planes, upload};
use moe_run_graph::ir::{Graph, WeightDecl, WeightId, WeightSlice};
use moe_run_graph::quant::Format;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{Progress, WeightSource, WeightTable};
use std::sync::Arc;

/// All weights of a graph on a device: matrices in their format (planes.rs), vectors as f32.
pub(super) struct CudaWeights {
    pub driver: Arc<dyn Driver>,
    table: WeightTable,
    /// By the ids of the table.
    buffers: Vec<Arc<DeviceBuffer>>,
    pub size_bytes: u64,
}

impl CudaWeights {
    /// Uploads the weights of a graph, while the kernels that it runs are made ready.
    pub fn upload(
        driver: Arc<dyn Driver>,
        table: WeightTable,
        source: &dyn WeightSource,
        kernels: &[&'static str],
        progress: Option<&(dyn Fn(Progress) + Send + Sync)>,
    ) -> Result<CudaWeights, BackendError> {
        let buffers = std::thread::scope(|scope| {
            scope.spawn(|| driver.load_kernels(kernels, progress));
            upload::upload(&driver, &table, source, progress)
        })?;
        driver.synchronize().map_err(|e| device::error(&driver.info().name, e))?;
        let size_bytes = upload::wanted_bytes(&table);
        let buffers = buffers.into_iter().map(Arc::new).collect();
        Ok(CudaWeights { driver, table, buffers, size_bytes })
    }

    /// The weights of a graph, by its own ids.
    pub fn of(&self, graph: &Graph) -> Result<GraphWeights, BackendError> {
        let found = self.table.find(graph)?;
        Ok(GraphWeights { buffers: found.iter().map(|id| Arc::clone(&self.buffers[id.index()])).collect() })
    }
}

/// The weights of one graph, by its ids.
pub(super) struct GraphWeights {
    buffers: Vec<Arc<DeviceBuffer>>,
}

impl GraphWeights {
    /// Places for the weights of a graph, with nothing in them.
    pub fn unfilled(driver: &Arc<dyn Driver>, graph: &Graph) -> Result<GraphWeights, DriverError> {
        let table = WeightTable::new(graph);
        let place = |decl: &WeightDecl| {
            DeviceBuffer::new(driver, upload::device_bytes(decl, table.is_matrix(decl.id))).map(Arc::new)
        };
        Ok(GraphWeights { buffers: graph.weights.iter().map(place).collect::<Result<_, _>>()? })
    }

    /// A vector [n] of f32.
    pub fn vector(&self, id: WeightId) -> Param {
        self.buffers[id.index()].param()
    }

    /// A vector that may be absent.
    pub fn opt_vector(&self, id: Option<WeightId>) -> Param {
        id.map_or(Param::NULL, |id| self.vector(id))
    }

    /// A slice of a matrix.
    pub fn matrix(&self, graph: &Graph, slice: &WeightSlice) -> Matrix {
        let decl = graph.weight(slice.tensor);
        let buffer = &self.buffers[slice.tensor.index()];
        let inner = decl.shape.last().copied().unwrap_or(0);
        let row_bytes = planes::row_bytes(decl.format, inner) as u64;
        let rows_stored = decl.shape[decl.shape.len() - 2];
        let expert_bytes = rows_stored as u64 * row_bytes;
        let first_expert = slice.experts.as_ref().map_or(0, |e| e.start) as u64;
        let offset = first_expert * expert_bytes + slice.rows.start as u64 * row_bytes;
        Matrix {
            format: decl.format,
            data: buffer.slice(offset, buffer.bytes() - offset),
            row_bytes,
            expert_bytes,
            rows: slice.rows.len(),
            inner,
        }
    }
}

/// A slice of a matrix as kernels take it.
pub(super) struct Matrix {
    /// The format's code in kernels/common/formats.cuh.
    pub format: Format,
    /// From the slice's first row to its end.
    pub data: Param,
    pub row_bytes: u64,
    /// From one expert to the next.
    pub expert_bytes: u64,
    /// Rows of the slice, of each expert.
    pub rows: usize,
    /// Elements of a row.
    pub inner: usize,
}

impl Matrix {
    /// The format as kernels number it.
    pub fn code(&self) -> Param {
        Param::I32(format_code(self.format))
    }
}

/// A format's number in kernels/common/formats.cuh.
pub(super) fn format_code(format: Format) -> i32 {
    match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Bf16 => 2,
        Format::Q4_0 => 3,
        Format::Q4_1 => 4,
        Format::Q5_0 => 5,
        Format::Q5_1 => 6,
        Format::Q8_0 => 7,
        Format::Q2K => 8,
        Format::Q3K => 9,
        Format::Q4K => 10,
        Format::Q5K => 11,
        Format::Q6K => 12,
        Format::Iq4Nl => 13,
        Format::Iq4Xs => 14,
        Format::Mxfp4 => 15,
        Format::Iq2Xxs => 16,
        Format::Iq2Xs => 17,
        Format::Iq2S => 18,
        Format::Iq3Xxs => 19,
        Format::Iq3S => 20,
        Format::Iq1S => 21,
        Format::Iq1M => 22,
        Format::Tq1_0 => 23,
        Format::Tq2_0 => 24,
        Format::Nvfp4 => 25,
        Format::Q1_0 => 26,
        Format::Q2_0 => 27,
    }
}
