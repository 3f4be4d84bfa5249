//! Weights as launches hold them: a view of the mapped bytes, cut into panels.

use crate::kernels::{PANEL_ROWS, PanelLayout};
use crate::memory::WeightBytes;
use moe_run_graph::quant::{ActivationPrecision, Format};
use std::ops::Range;

/// Rows of a tensor [out, in] or [E, out, in], as a matmul reads them.
#[derive(Clone)]
pub struct Matrix {
    /// How rows are stored.
    pub format: Format,
    /// The integer layout; `None` for plain floats.
    pub layout: Option<PanelLayout>,
    /// What it is multiplied with.
    pub activation: ActivationPrecision,
    /// Elements of a row.
    pub inner: usize,
    /// Rows of the slice (of each expert).
    pub rows: usize,
    /// Plain floats whose products are summed in f64, as the reference does.
    pub wide: bool,
    bytes: WeightBytes,
    row_bytes: usize,
    first_row: usize,
    tensor_rows: usize,
    first_expert: usize,
}

impl Matrix {
    /// A slice of a tensor with `tensor_rows` rows (of each expert); `bytes` covers the tensor, which is checked.
    pub fn new(
        format: Format,
        activation: ActivationPrecision,
        bytes: WeightBytes,
        inner: usize,
        tensor_rows: usize,
        rows: Range<usize>,
        first_expert: usize,
    ) -> Matrix {
        Matrix {
            format,
            layout: if activation == ActivationPrecision::F32 || activation == ActivationPrecision::F16 {
                None
            } else {
                PanelLayout::of(format)
            },
            activation,
            inner,
            rows: rows.len(),
            wide: false,
            bytes,
            row_bytes: inner / format.block_elems() * format.block_bytes(),
            first_row: rows.start,
            tensor_rows,
            first_expert,
        }
    }

    /// Panels of 16 rows (of each expert); the last may be short.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }

    /// Bytes between rows.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// A row's bytes.
    pub fn row(&self, row: usize) -> &[u8] {
        &self.bytes.get()[(self.first_row + row) * self.row_bytes..][..self.row_bytes]
    }

    /// The bytes of a row of an expert.
    pub fn expert_row(&self, expert: usize, row: usize) -> &[u8] {
        let row = (self.first_expert + expert) * self.tensor_rows + self.first_row + row;
        &self.bytes.get()[row * self.row_bytes..][..self.row_bytes]
    }

    /// The bytes of a panel and how many rows it has.
    pub fn panel(&self, expert: usize, panel: usize) -> (&[u8], usize) {
        self.panels_at(expert, panel..panel + 1)
    }

    /// The bytes of some panels and how many rows they have.
    pub fn panels_at(&self, expert: usize, panels: Range<usize>) -> (&[u8], usize) {
        let first = panels.start * PANEL_ROWS;
        let rows = (panels.len() * PANEL_ROWS).min(self.rows - first);
        let row = (self.first_expert + expert) * self.tensor_rows + self.first_row + first;
        (&self.bytes.get()[row * self.row_bytes..][..rows * self.row_bytes], rows)
    }

    /// The bytes behind a panel, as many as a panel has where the tensor goes on: what is likely read next.
    pub fn behind(&self, expert: usize, panel: usize) -> &[u8] {
        let row = (self.first_expert + expert) * self.tensor_rows + self.first_row + (panel + 1) * PANEL_ROWS;
        let bytes = self.bytes.get();
        let start = (row * self.row_bytes).min(bytes.len());
        &bytes[start..(start + PANEL_ROWS * self.row_bytes).min(bytes.len())]
    }
}
