//! Stage 5, wgpu: weights on the device, uploaded once, and the view of them that each graph has.
//!
//! Input: a graph's weights as views of the mapped file. Output: [`WgpuWeights`]: matrices in buffers, split by rows where
//! one is larger than a binding may be, and every small f32 vector in one buffer. Rows pass through one staging block at
//! a time, so that the host never holds more than [`STAGED_BYTES`] and one [`BLOCK_BYTES`] beside the mapping.

use super::device::Device;
use super::layout::RowLayout;
use super::opened::Opened;
use super::weight_map::WeightMap;
use moe_run_graph::ir::{Graph, Node, WeightDecl, WeightId};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{Progress, WeightSource, WeightTable};
use std::collections::HashMap;
use std::sync::atomic::Ordering;

/// Written to the queue before the device is waited for: what wgpu's own staging may hold at once.
pub(super) const STAGED_BYTES: usize = 64 << 20;

/// Repacked at a time.
pub(super) const BLOCK_BYTES: usize = 8 << 20;

/// The weights of a graph in buffers.
pub(super) struct Buffers {
    pub smalls: wgpu::Buffer,
    /// By tensor and part.
    pub parts: HashMap<(WeightId, usize), wgpu::Buffer>,
}

/// The weights of one graph, by its ids.
pub(super) struct GraphWeights {
    pub map: WeightMap,
    pub buffers: Buffers,
}

/// Weights that have been uploaded, and the device that they are on.
pub(super) struct WgpuWeights {
    pub opened: Opened,
    table: WeightTable,
    map: WeightMap,
    buffers: Buffers,
}

impl WgpuWeights {
    /// Uploads the weights of a graph as `map` lays them out.
    pub fn upload(
        opened: Opened,
        graph: &Graph,
        table: WeightTable,
        map: WeightMap,
        source: &dyn WeightSource,
        progress: Option<&(dyn Fn(Progress) + Send + Sync)>,
    ) -> Result<WgpuWeights, BackendError> {
        let buffers = upload(&opened.device, graph, &map, source, progress)?;
        Ok(WgpuWeights { opened, table, map, buffers })
    }

    /// Memory on the device.
    pub fn size_bytes(&self) -> u64 {
        self.map.size_bytes()
    }

    /// The weights of a graph, by its own ids.
    pub fn of(&self, graph: &Graph) -> Result<GraphWeights, BackendError> {
        let found = self.table.find(graph)?;
        let WeightMap { small_bytes, matrix_bytes, .. } = self.map;
        let mut map = WeightMap { small_bytes, matrix_bytes, ..WeightMap::default() };
        let mut parts = HashMap::new();
        for (decl, loaded) in graph.weights.iter().zip(&found) {
            if let Some(at) = self.map.small_at.get(loaded) {
                map.small_at.insert(decl.id, *at);
            }
            let Some(tensor) = self.map.matrices.get(loaded) else { continue };
            for part in 0..tensor.parts.len() {
                let buffer = self.buffers.parts.get(&(*loaded, part)).cloned();
                parts.extend(buffer.map(|buffer| ((decl.id, part), buffer)));
            }
            map.matrices.insert(decl.id, tensor.clone());
        }
        let buffers = Buffers { smalls: self.buffers.smalls.clone(), parts };
        Ok(GraphWeights { map, buffers })
    }
}

/// Uploads what the graph reads.
fn upload(
    device: &Device,
    graph: &Graph,
    map: &WeightMap,
    source: &dyn WeightSource,
    progress: Option<&(dyn Fn(Progress) + Send + Sync)>,
) -> Result<Buffers, BackendError> {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    let advice = "lower --ctx-size, take a smaller quantization of the model, or use --backend cpu";
    let smalls = device.buffer("norms and biases", map.small_bytes, usage, advice)?;
    let mut stage =
        Stage { device, block: Vec::new(), waiting_bytes: 0, done: 0, total: map.matrix_bytes, progress };
    let mut parts = HashMap::new();
    for decl in &graph.weights {
        let bytes = source.weight(decl).ok_or_else(|| BackendError::Weight {
            name: decl.name.clone(),
            wanted_bytes: decl.shape.iter().product::<usize>() / decl.format.block_elems()
                * decl.format.block_bytes(),
            found_bytes: 0,
        })?;
        if let Some(at) = map.small_at.get(&decl.id) {
            stage.write(&smalls, u64::from(*at) * 4, bytes, 0)?;
        }
        let Some(tensor) = map.matrices.get(&decl.id) else { continue };
        for (i, rows) in tensor.parts.iter().enumerate() {
            let size_bytes = tensor.layout.buffer_bytes(rows.len());
            let buffer = device
                .buffer(&decl.name, size_bytes, usage, advice)
                .map_err(|error| do_not_fit(error, graph, decl, stage.done, stage.total))?;
            let source = &bytes[rows.start * tensor.layout.file_row_bytes()..];
            stage.rows(&buffer, &tensor.layout, source, rows.len())?;
            parts.insert((decl.id, i), buffer);
        }
    }
    stage.flush()?;
    device.weight_bytes.fetch_add(map.size_bytes(), Ordering::Relaxed);
    Ok(Buffers { smalls, parts })
}

/// Out of memory at a tensor, told of all weights: which layers fit.
fn do_not_fit(
    error: BackendError,
    graph: &Graph,
    decl: &WeightDecl,
    available_bytes: u64,
    wanted_bytes: u64,
) -> BackendError {
    let BackendError::OutOfMemory { what, .. } = error else { return error };
    let reads = |n: &&Node| n.op.weight_slice().is_some_and(|s| s.tensor == decl.id);
    let fits = match graph.nodes.iter().find(reads).and_then(|n| n.layer) {
        Some(layer) => format!("{} of {} layers fit", layer.index(), graph.num_layers),
        None => format!("what is outside of the {} layers does not fit beside them", graph.num_layers),
    };
    BackendError::OutOfMemory {
        what: format!("{what}, with all other weights"),
        wanted_bytes,
        available_bytes,
        advice: format!(
            "{fits}, without a KV cache yet: take a smaller quantization of the model, another --device, or --backend cpu"
        ),
    }
}

/// The way of the rows to the device, a block at a time.
struct Stage<'a> {
    device: &'a Device,
    block: Vec<u8>,
    waiting_bytes: usize,
    done: u64,
    total: u64,
    progress: Option<&'a (dyn Fn(Progress) + Send + Sync)>,
}

impl Stage<'_> {
    fn rows(
        &mut self,
        buffer: &wgpu::Buffer,
        layout: &RowLayout,
        bytes: &[u8],
        rows: usize,
    ) -> Result<(), BackendError> {
        let (file_row_bytes, row_bytes) = (layout.file_row_bytes(), layout.row_words * 4);
        let table = layout.table();
        if !table.is_empty() {
            self.write(buffer, 0, table, self.block.capacity())?;
            self.done += table.len() as u64;
        }
        let block_rows = (BLOCK_BYTES / row_bytes).max(1);
        for first in (0..rows).step_by(block_rows) {
            let count = block_rows.min(rows - first);
            let source = &bytes[first * file_row_bytes..(first + count) * file_row_bytes];
            let at = (table.len() + first * row_bytes) as u64;
            if layout.is_native() {
                self.write(buffer, at, source, self.block.capacity())?;
            } else {
                let mut block = std::mem::take(&mut self.block);
                block.resize(count * row_bytes, 0);
                layout.repack(source, &mut block);
                self.write(buffer, at, &block, block.capacity())?;
                self.block = block;
            }
            self.done += (count * row_bytes) as u64;
        }
        if let Some(progress) = self.progress {
            progress(Progress { done: self.done, total: self.total, what: "uploading weights" });
        }
        Ok(())
    }

    /// Copies bytes into the queue's staging memory, once there is room, beside a block of `block_bytes`.
    fn write(
        &mut self,
        buffer: &wgpu::Buffer,
        at: u64,
        bytes: &[u8],
        block_bytes: usize,
    ) -> Result<(), BackendError> {
        if self.waiting_bytes + bytes.len() > STAGED_BYTES {
            self.flush()?;
        }
        self.device.queue.write_buffer(buffer, at, bytes);
        self.waiting_bytes += bytes.len();
        let on_host_bytes = (self.waiting_bytes + block_bytes) as u64;
        self.device.peak_staged_bytes.fetch_max(on_host_bytes, Ordering::Relaxed);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), BackendError> {
        self.device.queue.submit([]);
        self.waiting_bytes = 0;
        self.device.wait()
    }
}
