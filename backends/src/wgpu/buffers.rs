//! Stage 5, wgpu: weights on the device.
//!
//! Input: the graph's weights as views of the mapped file. Output: [`Tensors`]: matrices in buffers, split by rows where
//! one is larger than a binding may be, and every small f32 vector in one buffer. Rows pass through one staging block at
//! a time, so that the host never holds more than [`STAGED_BYTES`] beside the mapping.

use super::device::Device;
use super::layout::RowLayout;
use crate::error::BackendError;
use crate::executable::{Progress, WeightSource};
use moe_run_graph::ir::{Graph, WeightId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Written to the queue before the device is waited for: what wgpu's own staging may hold at once.
const STAGED_BYTES: usize = 64 << 20;

/// Repacked at a time.
const BLOCK_BYTES: usize = 8 << 20;

/// Rows of a matrix in one buffer.
pub(super) struct Part {
    pub buffer: Arc<wgpu::Buffer>,
    /// The first row, numbered through the whole tensor.
    pub row_begin: usize,
    /// The row behind the last.
    pub row_end: usize,
}

/// A matrix [rows, cols] or [E, rows, cols], its rows numbered through.
pub(super) struct Tensor {
    pub layout: RowLayout,
    pub parts: Vec<Part>,
}

/// All weights of a graph.
pub(super) struct Tensors {
    pub matrices: HashMap<WeightId, Tensor>,
    /// Where each vector begins in `smalls`, in words.
    pub small_at: HashMap<WeightId, u32>,
    pub smalls: wgpu::Buffer,
    pub size_bytes: u64,
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

/// Uploads what the graph reads.
pub(super) fn upload(
    device: &Device,
    graph: &Graph,
    weights: &dyn WeightSource,
    progress: Option<&(dyn Fn(Progress) + Send + Sync)>,
) -> Result<Tensors, BackendError> {
    let matrices = matrix_ids(graph);
    let missing = |name: &str, wanted_bytes: usize| BackendError::Weight {
        name: name.to_owned(),
        wanted_bytes,
        found_bytes: 0,
    };
    let mut smalls: Vec<u8> = Vec::new();
    let mut small_at = HashMap::new();
    for decl in graph.weights.iter().filter(|d| !matrices.contains(&d.id)) {
        let bytes = weights.bytes(&decl.name).ok_or_else(|| missing(&decl.name, 4))?;
        small_at.insert(decl.id, (smalls.len() / 4) as u32);
        smalls.extend_from_slice(bytes);
    }
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    let small_buffer = device.buffer("norms and biases", smalls.len() as u64, usage, "use another device")?;
    device.queue.write_buffer(&small_buffer, 0, &smalls);

    let layouts: Vec<(WeightId, RowLayout, usize)> = graph
        .weights
        .iter()
        .filter(|d| matrices.contains(&d.id))
        .map(|d| {
            let cols = d.shape.last().copied().unwrap_or(0);
            let rows = d.shape[..d.shape.len().saturating_sub(1)].iter().product();
            (d.id, RowLayout::new(d.format, cols), rows)
        })
        .collect();
    let total: u64 = layouts.iter().map(|(_, l, rows)| (l.row_words * 4 * rows) as u64).sum();
    let mut tensors = Tensors {
        matrices: HashMap::new(),
        small_at,
        smalls: small_buffer,
        size_bytes: total + smalls.len() as u64,
    };
    let mut stage =
        Stage { device, block: Vec::new(), waiting_bytes: smalls.len(), done: 0, total, progress };
    for (id, layout, rows) in layouts {
        let decl = graph.weight(id);
        let bytes =
            weights.bytes(&decl.name).ok_or_else(|| missing(&decl.name, rows * layout.file_row_bytes()))?;
        let row_bytes = layout.row_words as u64 * 4;
        let part_rows = split_rows(rows, row_bytes, device.max_binding_bytes).ok_or_else(|| {
            BackendError::OutOfMemory {
                what: format!("one row of tensor {}", decl.name),
                wanted_bytes: row_bytes,
                available_bytes: device.max_binding_bytes,
                advice: "the adapter binds no larger buffer; use another device".into(),
            }
        })?;
        let mut parts = Vec::new();
        for row_begin in (0..rows).step_by(part_rows) {
            let row_end = (row_begin + part_rows).min(rows);
            let size_bytes = (row_end - row_begin) as u64 * row_bytes;
            let what = format!("tensor {}, after {} of {total} bytes of weights", decl.name, stage.done);
            let advice = "lower --ctx-size, take a smaller quantization of the model, or use --backend cpu";
            let buffer = device.buffer(&what, size_bytes, usage, advice)?;
            stage.rows(
                &buffer,
                &layout,
                &bytes[row_begin * layout.file_row_bytes()..],
                row_end - row_begin,
            )?;
            parts.push(Part { buffer: Arc::new(buffer), row_begin, row_end });
        }
        tensors.matrices.insert(id, Tensor { layout, parts });
    }
    stage.flush()?;
    Ok(tensors)
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
                self.device.queue.write_buffer(buffer, at, source);
            } else {
                self.block.resize(count * row_bytes, 0);
                layout.repack(source, &mut self.block);
                self.device.queue.write_buffer(buffer, at, &self.block);
            }
            self.waiting_bytes += count * row_bytes;
            self.done += (count * row_bytes) as u64;
            if self.waiting_bytes >= STAGED_BYTES {
                self.flush()?;
            }
        }
        if let Some(progress) = self.progress {
            progress(Progress { done: self.done, total: self.total, what: "uploading weights" });
        }
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
