//! Stage 5, wgpu: weights on the device.
//!
//! Input: the graph's weights as views of the mapped file. Output: [`Tensors`]: matrices in buffers, split by rows where
//! one is larger than a binding may be, and every small f32 vector in one buffer. Rows pass through one staging block at
//! a time, so that the host never holds more than [`STAGED_BYTES`] and one [`BLOCK_BYTES`] beside the mapping.

use super::device::Device;
use super::layout::RowLayout;
use moe_run_graph::ir::{Graph, Node, WeightDecl, WeightId};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{Progress, WeightSource};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Written to the queue before the device is waited for: what wgpu's own staging may hold at once.
pub(super) const STAGED_BYTES: usize = 64 << 20;

/// Repacked at a time.
pub(super) const BLOCK_BYTES: usize = 8 << 20;

/// A matrix [rows, cols] or [E, rows, cols], its rows numbered through.
pub(super) struct Tensor {
    pub layout: RowLayout,
    /// The rows of each part that has a buffer of its own.
    pub parts: Vec<Range<usize>>,
}

/// How the weights of a graph are to lie on a device: known without one.
pub(super) struct WeightMap {
    pub matrices: HashMap<WeightId, Tensor>,
    /// Where each vector begins in the buffer of small weights, in words.
    pub small_at: HashMap<WeightId, u32>,
    small_bytes: usize,
    matrix_bytes: u64,
}

/// All weights of a graph on a device.
pub(super) struct Weights {
    pub smalls: wgpu::Buffer,
    /// By tensor and part.
    pub parts: HashMap<(WeightId, usize), wgpu::Buffer>,
}

/// Weights that a matmul or an embedding streams; the others are vectors.
fn matrix_ids(graph: &Graph) -> HashSet<WeightId> {
    graph.nodes.iter().filter_map(|n| n.op.weight_slice()).map(|s| s.tensor).collect()
}

/// Rows of each part: as even as they can be, none larger than a binding.
fn split_rows(rows: usize, row_bytes: u64, max_bytes: u64) -> Option<usize> {
    let most = usize::try_from(max_bytes / row_bytes.max(1)).ok()?;
    (most > 0).then(|| rows.div_ceil(rows.div_ceil(most).max(1)).max(1))
}

impl WeightMap {
    /// Lays out what the graph reads, matrices in parts of at most `max_tensor_bytes`.
    pub fn new(graph: &Graph, max_tensor_bytes: u64) -> Result<WeightMap, BackendError> {
        let matrix_ids = matrix_ids(graph);
        let mut map =
            WeightMap { matrices: HashMap::new(), small_at: HashMap::new(), small_bytes: 0, matrix_bytes: 0 };
        for decl in &graph.weights {
            if !matrix_ids.contains(&decl.id) {
                map.small_at.insert(decl.id, (map.small_bytes / 4) as u32);
                map.small_bytes += decl.shape.iter().product::<usize>() * 4;
                continue;
            }
            let cols = decl.shape.last().copied().unwrap_or(0);
            let rows: usize = decl.shape[..decl.shape.len().saturating_sub(1)].iter().product();
            let layout = RowLayout::new(decl.format, cols);
            let row_bytes = layout.row_words as u64 * 4;
            let part_rows =
                split_rows(rows, row_bytes, max_tensor_bytes).ok_or_else(|| BackendError::OutOfMemory {
                    what: format!("one row of tensor {}", decl.name),
                    wanted_bytes: row_bytes,
                    available_bytes: max_tensor_bytes,
                    advice: "the adapter binds no larger buffer; use another device".into(),
                })?;
            let parts = (0..rows).step_by(part_rows).map(|begin| begin..(begin + part_rows).min(rows));
            map.matrices.insert(decl.id, Tensor { layout, parts: parts.collect() });
            map.matrix_bytes += rows as u64 * row_bytes;
        }
        Ok(map)
    }

    /// Whether a node's matrix is in several parts.
    pub fn is_split(&self, node: &Node) -> bool {
        let tensor = node.op.weight_slice().and_then(|slice| self.matrices.get(&slice.tensor));
        tensor.is_some_and(|t| t.parts.len() > 1)
    }

    /// Memory on the device.
    pub fn size_bytes(&self) -> u64 {
        self.matrix_bytes + self.small_bytes as u64
    }
}

/// Uploads what the graph reads.
pub(super) fn upload(
    device: &Device,
    graph: &Graph,
    map: &WeightMap,
    weights: &dyn WeightSource,
    progress: Option<&(dyn Fn(Progress) + Send + Sync)>,
) -> Result<Weights, BackendError> {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    let advice = "lower --ctx-size, take a smaller quantization of the model, or use --backend cpu";
    let smalls = device.buffer("norms and biases", map.small_bytes as u64, usage, advice)?;
    let mut stage =
        Stage { device, block: Vec::new(), waiting_bytes: 0, done: 0, total: map.matrix_bytes, progress };
    let mut parts = HashMap::new();
    for decl in &graph.weights {
        let bytes = weights.weight(decl).ok_or_else(|| BackendError::Weight {
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
            let size_bytes = (rows.len() * tensor.layout.row_words * 4) as u64;
            let buffer = device
                .buffer(&decl.name, size_bytes, usage, advice)
                .map_err(|error| do_not_fit(error, graph, decl, stage.done, stage.total))?;
            let source = &bytes[rows.start * tensor.layout.file_row_bytes()..];
            stage.rows(&buffer, &tensor.layout, source, rows.len())?;
            parts.insert((decl.id, i), buffer);
        }
    }
    stage.flush()?;
    Ok(Weights { smalls, parts })
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
        let block_rows = (BLOCK_BYTES / row_bytes).max(1);
        for first in (0..rows).step_by(block_rows) {
            let count = block_rows.min(rows - first);
            let source = &bytes[first * file_row_bytes..(first + count) * file_row_bytes];
            let at = (first * row_bytes) as u64;
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

#[cfg(test)]
mod tests {
    use super::split_rows;

    #[test]
    fn parts_are_even_and_fit() {
        assert_eq!(split_rows(100, 10, 1000), Some(100));
        assert_eq!(split_rows(100, 10, 999), Some(50));
        assert_eq!(split_rows(100, 10, 10), Some(1));
        assert_eq!(split_rows(100, 10, 9), None);
    }
}
