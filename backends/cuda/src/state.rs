//! The declared states on the device: the KV cache, and what a sequence has once.

use super::device;
use super::driver::{DeviceBuffer, Driver, Param};
use moe_run_graph::ir::{Graph, Lifetime, StateDecl, StateId};
use moe_run_graph::quant::{ActQ8x32, Format, activation};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{KvType, PoolSize, Ring, Rings, State};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

static NEXT_STATE: AtomicU64 = AtomicU64::new(1);

/// How a state is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rows {
    elems: usize,
    /// 1 for what a sequence has once, those of a ring where only a window is read.
    count: usize,
    /// How they are stored.
    kv_type: KvType,
}

impl Rows {
    fn of(decl: &StateDecl, kv_type: KvType, size: PoolSize) -> Rows {
        let kv_type = match decl.lifetime {
            Lifetime::PerToken { .. } => kv_type,
            Lifetime::PerSequence => KvType::F32,
        };
        Rows { elems: decl.row_elems(), count: size.rows(decl), kv_type }
    }
}

/// A buffer for every declared state, of one sequence.
pub(super) struct CudaState {
    /// Tells states apart, for what was recorded against one of them.
    pub id: u64,
    buffers: Vec<DeviceBuffer>,
    rows: Vec<Rows>,
    kv_type: KvType,
    size: PoolSize,
    rings: Rings,
    driver: Arc<dyn Driver>,
}

impl CudaState {
    pub fn new(
        driver: &Arc<dyn Driver>,
        graph: &Graph,
        kv_type: KvType,
        size: PoolSize,
    ) -> Result<CudaState, BackendError> {
        let (wanted_bytes, capacity_tokens) = (size.bytes(graph, kv_type), size.tokens);
        let failed = |e| device::error(&driver.info().name, e);
        let (free, _) = driver.memory().map_err(failed)?;
        if wanted_bytes > free {
            let each = (wanted_bytes / capacity_tokens.max(1) as u64).max(1);
            return Err(BackendError::OutOfMemory {
                what: format!("KV cache of {capacity_tokens} positions, {each} bytes each ({kv_type})"),
                wanted_bytes,
                available_bytes: free,
                advice: format!(
                    "--ctx-size {} would fit, or try --kv-type q8_0",
                    size.most_tokens(graph, kv_type, free)
                ),
            });
        }
        let rows: Vec<Rows> = graph.states.iter().map(|s| Rows::of(s, kv_type, size)).collect();
        let mut buffers = Vec::with_capacity(rows.len());
        for rows in &rows {
            let bytes = (rows.count * rows.kv_type.row_bytes(rows.elems)) as u64;
            let buffer = DeviceBuffer::new(driver, bytes).map_err(failed)?;
            driver.clear(buffer.address(), bytes).map_err(failed)?;
            buffers.push(buffer);
        }
        let id = NEXT_STATE.fetch_add(1, Ordering::Relaxed);
        let rings = size.rings(&graph.states);
        Ok(CudaState { id, buffers, rows, kv_type, size, rings, driver: Arc::clone(driver) })
    }

    /// Rows of a state: position p is in row p modulo so many.
    pub fn rows(&self, id: StateId) -> usize {
        self.rows[id.index()].count
    }

    /// The buffer of a state.
    pub fn param(&self, id: StateId) -> Param {
        self.buffers[id.index()].param()
    }

    /// Whether it is what [`CudaState::new`] would make.
    pub fn is_for(&self, driver: &Arc<dyn Driver>, graph: &Graph, kv_type: KvType, size: PoolSize) -> bool {
        Arc::ptr_eq(&self.driver, driver)
            && (self.kv_type, self.size.tokens) == (kv_type, size.tokens)
            && self.rows.iter().copied().eq(graph.states.iter().map(|s| Rows::of(s, kv_type, size)))
    }

    /// Where rows are, and their bytes.
    fn range(&self, id: StateId, first: usize, slots: usize) -> (u64, usize) {
        let Rows { elems, count: _, kv_type } = self.rows[id.index()];
        let row = kv_type.row_bytes(elems);
        (self.buffers[id.index()].address() + (first * row) as u64, slots * row)
    }

    /// Rows as f32.
    pub fn read(&self, id: StateId, slots: std::ops::Range<usize>) -> Result<Vec<f32>, BackendError> {
        let count = slots.len();
        let (address, bytes) = self.range(id, slots.start, count);
        let mut raw = vec![0u8; bytes];
        self.driver.download(address, &mut raw).map_err(|e| device::error(&self.driver.info().name, e))?;
        let rows = self.rows[id.index()];
        let mut out = vec![0.0; count * rows.elems];
        let format = match rows.kv_type {
            KvType::F16 => Format::F16,
            KvType::F32 => Format::F32,
            KvType::Q8_0 => Format::Q8_0,
        };
        format.decode_row(&raw, &mut out);
        Ok(out)
    }

    /// Replaces rows, rounding as the cache does.
    pub fn write(&self, id: StateId, first: usize, rows: &[f32]) -> Result<(), BackendError> {
        let Rows { elems, count: _, kv_type } = self.rows[id.index()];
        let (address, bytes) = self.range(id, first, rows.len() / elems);
        let mut raw = Vec::with_capacity(bytes);
        match kv_type {
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
        self.size.tokens
    }

    fn rings(&self) -> &[Option<Ring>] {
        &self.rings
    }

    fn size_bytes(&self) -> u64 {
        self.buffers.iter().map(DeviceBuffer::bytes).sum()
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
