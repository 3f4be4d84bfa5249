//! Activations on their way into products: rows rounded as the weights want them, and laid out as tiles.
//!
//! A *slot* is one row of a product: a token, or a token with one of its experts. Slots of a group (an expert) stand
//! together, in tiles of up to 8. A tile that begins at slot s takes the elements from s · inner on.

use crate::kernels::{Kernels, STEP_ELEMS, TileStep};
use crate::memory::Shared;
use half::slice::HalfFloatSliceExt;
use moe_run_graph::quant::{ActBlock, Activation};

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
    pub fn with(mut self, activation: Activation) -> Kinds {
        match activation {
            Activation::F32 => self.f32 = true,
            Activation::F16 => self.f16 = true,
            Activation::Q8(ActBlock::X32) => self.q8x32 = true,
            Activation::Q8(ActBlock::X256) => self.q8x256 = true,
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

/// 8-bit tiles of one block length.
pub struct Q8Tiles {
    block: usize,
    q: Shared<i8>,
    neg_sums16: Shared<i32>,
    neg_sums32: Shared<i32>,
    scale: Shared<f32>,
}

impl Q8Tiles {
    fn new(block: usize, elems: usize) -> Q8Tiles {
        Q8Tiles {
            block,
            q: Shared::new(elems),
            neg_sums16: Shared::new(elems / 16),
            neg_sums32: Shared::new(elems / 32),
            scale: Shared::new(elems / block),
        }
    }
}

/// Room for the tiles of one launch, in each rounding that the executable uses.
pub struct Activations {
    f32: Shared<f32>,
    f16: Shared<f32>,
    q8x32: Q8Tiles,
    q8x256: Q8Tiles,
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

impl Activations {
    /// Room for `elems` elements (slots × inner) in each of `kinds`.
    pub fn new(kinds: Kinds, elems: usize) -> Activations {
        let room = |wanted: bool| if wanted { elems } else { 0 };
        Activations {
            f32: Shared::new(room(kinds.f32)),
            f16: Shared::new(room(kinds.f16)),
            q8x32: Q8Tiles::new(32, room(kinds.q8x32)),
            q8x256: Q8Tiles::new(256, room(kinds.q8x256)),
        }
    }

    /// Puts `x`, slot `lane` of a tile of `tokens` at slot `first`, into every rounding of `kinds`.
    ///
    /// # Safety
    /// No other worker touches this tile until the next barrier.
    pub unsafe fn put(
        &self,
        kernels: Kernels,
        kinds: Kinds,
        tile: Tile,
        lane: usize,
        x: &[f32],
        row: &mut RowBuffers,
    ) {
        let (inner, n) = (x.len(), tile.tokens);
        let start = tile.first * inner;
        if kinds.f32 {
            // SAFETY: the tile is this worker's until the next barrier.
            interleave(x, unsafe { self.f32.write(start..start + n * inner) }, n, lane);
        }
        if kinds.f16 {
            let halves = &mut row.halves[..inner];
            halves.convert_from_f32_slice(x);
            halves.convert_to_f32_slice(&mut row.rounded[..inner]);
            // SAFETY: as above.
            interleave(&row.rounded[..inner], unsafe { self.f16.write(start..start + n * inner) }, n, lane);
        }
        for (wanted, tiles) in [(kinds.q8x32, &self.q8x32), (kinds.q8x256, &self.q8x256)] {
            if !wanted {
                continue;
            }
            let block = tiles.block;
            let part = |per: usize| start / per..(start + n * inner) / per;
            // SAFETY: as above.
            let (q, scale, s16, s32) = unsafe {
                (
                    tiles.q.write(part(1)),
                    tiles.scale.write(part(block)),
                    tiles.neg_sums16.write(part(16)),
                    tiles.neg_sums32.write(part(32)),
                )
            };
            if n == 1 {
                kernels.quantize(x, block, q, scale, s16, s32);
                continue;
            }
            let (row_q, row_scale) = (&mut row.q[..inner], &mut row.scale[..inner / block]);
            let (row16, row32) = (&mut row.neg_sums16[..inner / 16], &mut row.neg_sums32[..inner / 32]);
            kernels.quantize(x, block, row_q, row_scale, row16, row32);
            interleave(row_q.as_chunks::<4>().0, q.as_chunks_mut::<4>().0, n, lane);
            interleave(row_scale, scale, n, lane);
            interleave(row16, s16, n, lane);
            interleave(row32, s32, n, lane);
        }
    }

    /// Step `step` of a tile in 8 bits.
    ///
    /// # Safety
    /// The tile is complete: a barrier, or the same worker, stands between it and [`Activations::put`].
    pub unsafe fn q8(&self, block: ActBlock, tile: Tile, inner: usize, step: usize) -> TileStep<'_> {
        let tiles = if block == ActBlock::X32 { &self.q8x32 } else { &self.q8x256 };
        let start = tile.first * inner + step * STEP_ELEMS * tile.tokens;
        let end = (tile.first + tile.tokens) * inner;
        // SAFETY: the caller's promise.
        unsafe {
            TileStep {
                q: tiles.q.read(start..end),
                neg_sums16: tiles.neg_sums16.read(start / 16..end / 16),
                neg_sums32: tiles.neg_sums32.read(start / 32..end / 32),
                scale: tiles.scale.read(start / tiles.block..end / tiles.block),
                scale_per_step: block == ActBlock::X256,
            }
        }
    }

    /// Step `step` of a tile as floats, `[k][slot]`.
    ///
    /// # Safety
    /// As [`Activations::q8`].
    pub unsafe fn floats(&self, f16: bool, tile: Tile, inner: usize, step: usize) -> &[f32] {
        let values = if f16 { &self.f16 } else { &self.f32 };
        let start = tile.first * inner + step * STEP_ELEMS * tile.tokens;
        // SAFETY: the caller's promise.
        unsafe { values.read(start..(tile.first + tile.tokens) * inner) }
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
