//! Activations on their way into products: rows rounded as the weights want them, and laid out as tiles.
//!
//! A *slot* is one row of a product: a token, or a token with one of its experts. Slots of a group (an expert) stand
//! together, in tiles of up to 8. A tile that begins at slot s takes the elements from s · inner on.

use crate::kernels::Kernels;
use crate::tiles::{Q8TileMut, TileMut};
use half::slice::HalfFloatSliceExt;
use moe_run_graph::quant::{ActBlock, ActivationPrecision};

/// Which roundings a product (or all of an executable's) reads.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Kinds {
    /// As they are.
    pub f32: bool,
    /// Rounded to f16.
    pub f16: bool,
    /// 8 bits in blocks of 32.
    pub q8x32: bool,
    /// 8 bits in blocks of 256.
    pub q8x256: bool,
}

impl Kinds {
    /// These and one more.
    pub fn with(mut self, activation: ActivationPrecision) -> Kinds {
        match activation {
            ActivationPrecision::F32 => self.f32 = true,
            ActivationPrecision::F16 => self.f16 = true,
            ActivationPrecision::Q8(ActBlock::X32) => self.q8x32 = true,
            ActivationPrecision::Q8(ActBlock::X256) => self.q8x256 = true,
        }
        self
    }

    /// These and those.
    pub fn union(self, other: Kinds) -> Kinds {
        Kinds {
            f32: self.f32 || other.f32,
            f16: self.f16 || other.f16,
            q8x32: self.q8x32 || other.q8x32,
            q8x256: self.q8x256 || other.q8x256,
        }
    }
}

/// One row before it is interleaved with others.
pub struct RowBuffers {
    rounded: Vec<f32>,
    halves: Vec<half::f16>,
    q: Vec<i8>,
    neg_sums16: Vec<i32>,
    neg_sums32: Vec<i32>,
    scale: Vec<f32>,
}

impl RowBuffers {
    /// For rows of up to `inner` elements.
    pub fn new(inner: usize) -> RowBuffers {
        RowBuffers {
            rounded: vec![0.0; inner],
            halves: vec![half::f16::ZERO; inner],
            q: vec![0; inner],
            neg_sums16: vec![0; inner / 16],
            neg_sums32: vec![0; inner / 32],
            scale: vec![0.0; inner / 32],
        }
    }
}

/// A tile: `tokens` slots from `first` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tile {
    /// The group (expert) that it belongs to.
    pub group: usize,
    /// Its first slot.
    pub first: usize,
    /// 1 to 8.
    pub tokens: usize,
}

impl TileMut<'_> {
    /// Puts `x` into slot `lane`, in every rounding that is wanted.
    pub fn put(&mut self, kernels: Kernels, lane: usize, x: &[f32], row: &mut RowBuffers) {
        let (inner, n) = (x.len(), self.tokens);
        if let Some(to) = &mut self.f32 {
            interleave(x, to, n, lane);
        }
        if let Some(to) = &mut self.f16 {
            let halves = &mut row.halves[..inner];
            halves.convert_from_f32_slice(x);
            halves.convert_to_f32_slice(&mut row.rounded[..inner]);
            interleave(&row.rounded[..inner], to, n, lane);
        }
        for Q8TileMut { block, q, neg_sums16, neg_sums32, scale } in self.q8.iter_mut().flatten() {
            let block = *block;
            if n == 1 {
                kernels.quantize(x, block, q, scale, neg_sums16, neg_sums32);
                continue;
            }
            let (row_q, row_scale) = (&mut row.q[..inner], &mut row.scale[..inner / block]);
            let (row16, row32) = (&mut row.neg_sums16[..inner / 16], &mut row.neg_sums32[..inner / 32]);
            kernels.quantize(x, block, row_q, row_scale, row16, row32);
            interleave(row_q.as_chunks::<4>().0, q.as_chunks_mut::<4>().0, n, lane);
            interleave(row_scale, scale, n, lane);
            interleave(row16, neg_sums16, n, lane);
            interleave(row32, neg_sums32, n, lane);
        }
    }
}

fn interleave<T: Copy>(from: &[T], to: &mut [T], n: usize, lane: usize) {
    if n == 1 {
        return to.copy_from_slice(from);
    }
    for (from, to) in from.iter().zip(to.chunks_exact_mut(n)) {
        to[lane] = *from;
    }
}
