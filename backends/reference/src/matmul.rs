//! x · Wᵀ, a row of W at a time: decoded exactly for floats, as integers under scales for 8-bit activations.

use moe_run_graph::quant::{
    ActBlock, ActQ8x32, ActQ8x256, ActivationPrecision, Format, Integers, activation,
};
use std::ops::Range;

/// The activations as a matmul reads them.
pub enum Rounded {
    /// As they are, or rounded to f16.
    Floats(Vec<f32>),
    /// 8-bit steps, a scale for each `block` of them.
    Steps { block: usize, scale: Vec<f32>, q: Vec<i8> },
}

impl Rounded {
    /// Rounds whole rows, as many elements as whole blocks have.
    pub fn new(x: &[f32], activation: ActivationPrecision) -> Rounded {
        match activation {
            ActivationPrecision::F32 => Rounded::Floats(x.to_vec()),
            ActivationPrecision::F16 => {
                Rounded::Floats(x.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect())
            }
            ActivationPrecision::Q8(ActBlock::X32) => {
                let mut blocks = vec![ActQ8x32 { scale: 0.0, q: [0; 32] }; x.len() / 32];
                activation::quantize_x32(x, &mut blocks);
                Rounded::Steps {
                    block: 32,
                    scale: blocks.iter().map(|b| b.scale).collect(),
                    q: blocks.iter().flat_map(|b| b.q).collect(),
                }
            }
            ActivationPrecision::Q8(ActBlock::X256) => {
                let mut blocks = vec![ActQ8x256 { scale: 0.0, q: [0; 256], sums: [0; 16] }; x.len() / 256];
                activation::quantize_x256(x, &mut blocks);
                Rounded::Steps {
                    block: 256,
                    scale: blocks.iter().map(|b| b.scale).collect(),
                    q: blocks.iter().flat_map(|b| b.q).collect(),
                }
            }
        }
    }

    /// Rows of `inner` elements.
    pub fn rows(&self, inner: usize) -> usize {
        match self {
            Rounded::Floats(x) => x.len() / inner,
            Rounded::Steps { q, .. } => q.len() / inner,
        }
    }
}

/// A row of weights, taken apart as the activations need it.
pub enum WeightRow {
    Floats(Vec<f32>),
    Blocks(Vec<Integers>),
}

impl WeightRow {
    /// From the row's bytes. Only quantized formats meet 8-bit activations (`ActProfile::for_weights`).
    pub fn new(format: Format, bytes: &[u8], inner: usize, x: &Rounded) -> WeightRow {
        match x {
            Rounded::Floats(_) => {
                let mut decoded = vec![0.0; inner];
                format.decode_row(bytes, &mut decoded);
                WeightRow::Floats(decoded)
            }
            Rounded::Steps { .. } => {
                let mut blocks = Vec::with_capacity(inner / format.block_elems());
                format.for_each_block(bytes, |block| blocks.push(*block));
                WeightRow::Blocks(blocks)
            }
        }
    }

    /// The product with row `row` of the activations, which have `inner` elements.
    pub fn dot(&self, x: &Rounded, row: usize, inner: usize) -> f32 {
        let elems = row * inner..(row + 1) * inner;
        match (self, x) {
            (WeightRow::Blocks(w), Rounded::Steps { block, scale, q }) => {
                dot_steps(w, *block, &scale[elems.start / block..elems.end / block], &q[elems])
            }
            (WeightRow::Floats(w), Rounded::Floats(x)) => dot(w, &x[elems]),
            _ => f32::NAN, // a row taken apart for other activations
        }
    }
}

/// A decoded row of weights times one row of activations, summed in f64.
fn dot(w: &[f32], x: &[f32]) -> f32 {
    w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32
}

/// A row of blocks times one row of 8-bit activations: the definition of that product, to the bit.
///
/// Where one scale d of the weights meets one scale a of the activations (256 elements if both have that many, else 32, of NVFP4 16),
/// sums are exact integers: I = Σ sub_scale·q_w·q_x and J = Σ sub_min·q_x. These runs are summed first to last in f32 with
/// fused multiply-adds: sum ← fma(dmin·a, −J, sum), then sum ← fma(d·a, I, sum).
fn dot_steps(w: &[Integers], block: usize, scale: &[f32], q: &[i8]) -> f32 {
    let block_elems = q.len() / w.len();
    let run_elems = block_elems.min(block);
    let mut sum = 0.0f32;
    for (w, (at, q)) in w.iter().zip(q.chunks_exact(block_elems).enumerate()) {
        for first in (0..block_elems).step_by(run_elems) {
            let a = scale[(at * block_elems + first) / block];
            let (mut products, mut minima) = (0, 0);
            for sub in first / w.sub_elems..(first + run_elems) / w.sub_elems {
                let elems = sub * w.sub_elems..(sub + 1) * w.sub_elems;
                let pairs = w.q[elems.clone()].iter().zip(&q[elems.clone()]);
                products += i32::from(w.sub_scales[sub])
                    * pairs.map(|(w, x)| i32::from(*w) * i32::from(*x)).sum::<i32>();
                minima += i32::from(w.sub_mins[sub]) * q[elems].iter().map(|x| i32::from(*x)).sum::<i32>();
            }
            if w.min != 0.0 {
                sum = (w.min * a).mul_add(-minima as f32, sum);
            }
            sum = (w.scale * a).mul_add(products as f32, sum);
        }
    }
    sum
}

/// A matrix as the file stores it.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub format: Format,
    pub bytes: &'a [u8],
    pub inner: usize,
}

impl Matrix<'_> {
    /// The bytes of row `row`.
    fn row_bytes(&self, row: usize) -> &[u8] {
        let bytes = self.inner / self.format.block_elems() * self.format.block_bytes();
        &self.bytes[row * bytes..][..bytes]
    }

    /// Row `row`, decoded.
    pub(super) fn decode_row(&self, row: usize, out: &mut [f32]) {
        self.format.decode_row(self.row_bytes(row), out);
    }

    /// Row `row`, as products with `x` need it.
    pub(super) fn row(&self, row: usize, x: &Rounded) -> WeightRow {
        WeightRow::new(self.format, self.row_bytes(row), self.inner, x)
    }
}

/// `x` [n, in] → `out` [n, rows].
pub(super) fn matmul(
    x: &Rounded,
    matrix: Matrix<'_>,
    rows: Range<usize>,
    bias: Option<&[f32]>,
    scale: Option<f32>,
    out: &mut [f32],
) {
    for (i, r) in rows.clone().enumerate() {
        let w = matrix.row(r, x);
        for (row, out) in out.chunks_exact_mut(rows.len()).enumerate() {
            out[i] = w.dot(x, row, matrix.inner) * scale.unwrap_or(1.0) + bias.map_or(0.0, |b| b[i]);
        }
    }
}
