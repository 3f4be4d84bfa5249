//! Stage 5, wgpu: how weights lie on a device: matrices in parts that bindings can hold, vectors in one buffer.

use super::layout::RowLayout;
use moe_run_graph::ir::{Node, WeightId};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::WeightTable;
use std::collections::HashMap;
use std::ops::Range;

/// A matrix [rows, cols] or [E, rows, cols], its rows numbered through.
#[derive(Clone)]
pub(super) struct Tensor {
    pub layout: RowLayout,
    /// The rows of each part that has a buffer of its own.
    pub parts: Vec<Range<usize>>,
}

/// How the weights of a graph lie, or are to lie, on a device: known without one.
#[derive(Default)]
pub(super) struct WeightMap {
    pub matrices: HashMap<WeightId, Tensor>,
    /// Where each vector begins in the buffer of small weights, in words.
    pub small_at: HashMap<WeightId, u32>,
    /// Of all that is loaded.
    pub small_bytes: u64,
    pub matrix_bytes: u64,
}

/// Rows of each part: as even as they can be, none larger than a binding.
fn split_rows(rows: usize, row_bytes: u64, max_bytes: u64) -> Option<usize> {
    let most = usize::try_from(max_bytes / row_bytes.max(1)).ok()?;
    (most > 0).then(|| rows.div_ceil(rows.div_ceil(most).max(1)).max(1))
}

impl WeightMap {
    /// Lays out weights, matrices in parts of at most `max_tensor_bytes`.
    pub fn new(table: &WeightTable, max_tensor_bytes: u64) -> Result<WeightMap, BackendError> {
        let mut map = WeightMap::default();
        for decl in table.decls() {
            if !table.is_matrix(decl.id) {
                map.small_at.insert(decl.id, (map.small_bytes / 4) as u32);
                map.small_bytes += decl.shape.iter().product::<usize>() as u64 * 4;
                continue;
            }
            let cols = decl.shape.last().copied().unwrap_or(0);
            let rows: usize = decl.shape[..decl.shape.len().saturating_sub(1)].iter().product();
            let layout = RowLayout::new(decl.format, cols);
            let row_bytes = layout.row_words as u64 * 4;
            let part_rows =
                split_rows(rows, row_bytes, max_tensor_bytes.saturating_sub(layout.buffer_bytes(0)))
                    .ok_or_else(|| BackendError::OutOfMemory {
                        what: format!("one row of tensor {}", decl.name),
                        wanted_bytes: layout.buffer_bytes(1),
                        available_bytes: max_tensor_bytes,
                        advice: "the adapter binds no larger buffer; use another device".into(),
                    })?;
            let parts = (0..rows).step_by(part_rows).map(|begin| begin..(begin + part_rows).min(rows));
            let parts: Vec<_> = parts.collect();
            map.matrix_bytes += parts.iter().map(|rows| layout.buffer_bytes(rows.len())).sum::<u64>();
            map.matrices.insert(decl.id, Tensor { layout, parts });
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
        self.matrix_bytes + self.small_bytes
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
