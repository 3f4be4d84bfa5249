//! x · Wᵀ: each row of W is decoded exactly and multiplied with the activations as the profile rounds them.

use moe_run_graph::quant::{ActBlock, ActQ8x32, ActQ8x256, Activation, Format, activation};

/// The activations as a matmul reads them: rounded by the profile, decoded again.
pub(super) fn round_activations(x: &[f32], activation: Activation) -> Vec<f32> {
    let mut rounded = x.to_vec();
    match activation {
        Activation::F32 => {}
        Activation::F16 => rounded.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32()),
        Activation::Q8(ActBlock::X32) => {
            let mut blocks = vec![ActQ8x32 { scale: 0.0, q: [0; 32] }; x.len() / 32];
            activation::quantize_x32(x, &mut blocks);
            activation::dequantize_x32(&blocks, &mut rounded);
        }
        Activation::Q8(ActBlock::X256) => {
            let mut blocks = vec![ActQ8x256 { scale: 0.0, q: [0; 256], sums: [0; 16] }; x.len() / 256];
            activation::quantize_x256(x, &mut blocks);
            activation::dequantize_x256(&blocks, &mut rounded);
        }
    }
    rounded
}

/// A decoded row of weights times one row of activations, summed in f64.
pub(super) fn dot(w: &[f32], x: &[f32]) -> f32 {
    w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32
}

/// A matrix as the file stores it.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub format: Format,
    pub bytes: &'a [u8],
    pub inner: usize,
}

impl Matrix<'_> {
    /// Calls `row(r, decoded)` for rows `rows`.
    pub(super) fn for_rows(&self, rows: std::ops::Range<usize>, mut row: impl FnMut(usize, &[f32])) {
        let row_bytes = self.bytes.len() / self.rows_stored();
        let mut decoded = vec![0.0; self.inner];
        for r in rows {
            self.format.decode_row(&self.bytes[r * row_bytes..][..row_bytes], &mut decoded);
            row(r, &decoded);
        }
    }

    fn rows_stored(&self) -> usize {
        let row_bytes = self.inner / self.format.block_elems() * self.format.block_bytes();
        self.bytes.len() / row_bytes
    }
}

/// `x` [n, in] (already rounded) → `out` [n, rows].
pub(super) fn matmul(
    x: &[f32],
    matrix: Matrix<'_>,
    rows: std::ops::Range<usize>,
    bias: Option<&[f32]>,
    scale: Option<f32>,
    out: &mut [f32],
) {
    let (start, width) = (rows.start, rows.len());
    matrix.for_rows(rows, |r, w| {
        for (x, out) in x.chunks_exact(matrix.inner).zip(out.chunks_exact_mut(width)) {
            let product = dot(w, x) * scale.unwrap_or(1.0);
            out[r - start] = product + bias.map_or(0.0, |b| b[r - start]);
        }
    });
}
