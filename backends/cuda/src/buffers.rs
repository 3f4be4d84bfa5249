//! Memory on the device: weights, the state, and a step's values.

use super::driver::{DeviceBuffer, Driver, Param};
use super::{device, planes, upload};
use moe_run_graph::ir::{Graph, StateId, WeightId, WeightSlice};
use moe_run_graph::quant::{ActQ8x32, Format, activation};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{CompileOptions, KvType, MemoryNeed, Progress, State, WeightSource};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// All weights on the device: matrices in their format (planes.rs), vectors as f32.
pub(super) struct Weights {
    buffers: Vec<DeviceBuffer>,
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
    }
}

/// Whether a weight is read as a matrix (in its format) by some op; others are vectors, kept as f32.
fn is_matrix(graph: &Graph, id: WeightId) -> bool {
    graph.nodes.iter().any(|n| n.op.weight_slice().is_some_and(|slice| slice.tensor == id))
}

impl Weights {
    /// Bytes that the weights of a graph will take.
    pub fn wanted_bytes(graph: &Graph) -> u64 {
        graph.weights.iter().map(|decl| upload::device_bytes(decl, is_matrix(graph, decl.id))).sum()
    }

    /// Uploads every weight of the graph; their sizes have been checked.
    pub fn upload(
        driver: &Arc<dyn Driver>,
        graph: &Graph,
        source: &dyn WeightSource,
        progress: Option<&(dyn Fn(Progress) + Send + Sync)>,
    ) -> Result<Weights, BackendError> {
        let buffers = upload::upload(driver, graph, source, &|decl| is_matrix(graph, decl.id), progress)?;
        Ok(Weights { buffers })
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

/// Refuses before anything is uploaded what cannot fit; else what it will take. `cache` is all that grows with the
/// context: RoPE's angles are in it.
pub(super) fn check_memory(
    driver: &dyn Driver,
    weights: u64,
    working: u64,
    cache: u64,
    options: &CompileOptions,
) -> Result<MemoryNeed, BackendError> {
    let (free, all) = driver.memory().map_err(|e| device::error(&driver.info().name, e))?;
    let need = MemoryNeed {
        weight_bytes: weights,
        kv_cache_bytes: cache,
        kv_stored: options.kv_type,
        working_bytes: working,
        available_bytes: Some(free),
    };
    let wanted = need.wanted_bytes();
    if wanted <= free {
        return Ok(need);
    }
    let rest = free.saturating_sub(weights.saturating_add(working));
    let ctx_size = options.ctx_size;
    let each = (cache / ctx_size.max(1) as u64).max(1);
    let mut advice = if rest >= each {
        format!("--ctx-size {} would fit, or try --kv-type q8_0", rest / each)
    } else {
        "weights and working memory alone do not fit: try a smaller model or --backend cpu".into()
    };
    if wanted <= all {
        let held = all - free;
        advice = format!(
            "of the device's {all} bytes {held} are in use, by other processes too (see nvidia-smi); {advice}"
        );
    }
    Err(BackendError::OutOfMemory {
        what: format!(
            "{}: {weights} bytes of weights + {working} of working memory + {cache} of KV cache for {ctx_size} \
             positions",
            driver.info().name
        ),
        wanted_bytes: wanted,
        available_bytes: free,
        advice,
    })
}

static NEXT_STATE: AtomicU64 = AtomicU64::new(1);

/// The KV cache: a buffer for every declared state.
pub(super) struct CudaState {
    /// Tells states apart, for what was recorded against one of them.
    pub id: u64,
    buffers: Vec<DeviceBuffer>,
    row_elems: Vec<usize>,
    kv_type: KvType,
    capacity_tokens: usize,
    driver: Arc<dyn Driver>,
}

impl CudaState {
    pub fn new(
        driver: &Arc<dyn Driver>,
        graph: &Graph,
        kv_type: KvType,
        capacity_tokens: usize,
    ) -> Result<CudaState, BackendError> {
        let wanted_bytes = kv_type.cache_bytes(graph, capacity_tokens);
        let failed = |e| device::error(&driver.info().name, e);
        let (free, _) = driver.memory().map_err(failed)?;
        if wanted_bytes > free {
            let each = (wanted_bytes / capacity_tokens.max(1) as u64).max(1);
            return Err(BackendError::OutOfMemory {
                what: format!("KV cache of {capacity_tokens} positions, {each} bytes each ({kv_type})"),
                wanted_bytes,
                available_bytes: free,
                advice: format!("--ctx-size {} would fit, or try --kv-type q8_0", free / each),
            });
        }
        let row_elems: Vec<usize> = graph.states.iter().map(|s| s.row_elems()).collect();
        let mut buffers = Vec::with_capacity(row_elems.len());
        for elems in &row_elems {
            let bytes = (capacity_tokens * kv_type.row_bytes(*elems)) as u64;
            let buffer = DeviceBuffer::new(driver, bytes).map_err(failed)?;
            driver.clear(buffer.address(), bytes).map_err(failed)?;
            buffers.push(buffer);
        }
        let id = NEXT_STATE.fetch_add(1, Ordering::Relaxed);
        Ok(CudaState { id, buffers, row_elems, kv_type, capacity_tokens, driver: Arc::clone(driver) })
    }

    /// The buffer of a state.
    pub fn param(&self, id: StateId) -> Param {
        self.buffers[id.index()].param()
    }

    fn range(&self, id: StateId, first: usize, slots: usize) -> Result<(u64, usize), BackendError> {
        if first.checked_add(slots).is_none_or(|end| end > self.capacity_tokens) {
            return Err(BackendError::Value {
                value: id.to_string(),
                detail: format!(
                    "slots {first} to {} of {}",
                    first.saturating_add(slots),
                    self.capacity_tokens
                ),
            });
        }
        let row = self.kv_type.row_bytes(self.row_elems[id.index()]);
        Ok((self.buffers[id.index()].address() + (first * row) as u64, slots * row))
    }

    /// Rows as f32.
    pub fn read(&self, id: StateId, slots: std::ops::Range<usize>) -> Result<Vec<f32>, BackendError> {
        let count = slots.end.saturating_sub(slots.start);
        let (address, bytes) = self.range(id, slots.start, count)?;
        let mut raw = vec![0u8; bytes];
        self.driver.download(address, &mut raw).map_err(|e| device::error(&self.driver.info().name, e))?;
        let mut out = vec![0.0; count * self.row_elems[id.index()]];
        let format = match self.kv_type {
            KvType::F16 => Format::F16,
            KvType::F32 => Format::F32,
            KvType::Q8_0 => Format::Q8_0,
        };
        format.decode_row(&raw, &mut out);
        Ok(out)
    }

    /// Replaces rows, rounding as the cache does.
    pub fn write(&self, id: StateId, first: usize, rows: &[f32]) -> Result<(), BackendError> {
        let elems = self.row_elems[id.index()];
        if elems == 0 || !rows.len().is_multiple_of(elems) {
            return Err(BackendError::Value {
                value: id.to_string(),
                detail: format!("{} elements, wanted rows of {elems}", rows.len()),
            });
        }
        let (address, bytes) = self.range(id, first, rows.len() / elems)?;
        let mut raw = Vec::with_capacity(bytes);
        match self.kv_type {
            KvType::F32 => raw.extend_from_slice(bytemuck::cast_slice(rows)),
            KvType::F16 => {
                raw.extend(rows.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()));
            }
            KvType::Q8_0 => {
                let mut block = [ActQ8x32 { scale: 0.0, q: [0; 32] }];
                for chunk in rows.chunks_exact(32) {
                    activation::quantize_x32(chunk, &mut block);
                    raw.extend(half::f16::from_f32(block[0].scale).to_le_bytes());
                    raw.extend(block[0].q.iter().map(|q| *q as u8));
                }
            }
        }
        self.driver.upload(address, &raw).map_err(|e| device::error(&self.driver.info().name, e))
    }
}

impl State for CudaState {
    fn capacity_tokens(&self) -> usize {
        self.capacity_tokens
    }

    fn size_bytes(&self) -> u64 {
        self.buffers.iter().map(DeviceBuffer::bytes).sum()
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
