//! The room in which a product's input is laid out as tiles, in each rounding that its weights want: one for all workers,
//! which fill tiles side by side, and one of each worker's own.

use super::kernels::{STEP_ELEMS, TileStep};
use super::memory::Shared;
use super::ops::activations::{Kinds, Tile};
use moe_run_graph::quant::ActBlock;
use std::ops::Range;

/// 8-bit tiles of one block length.
struct Q8Tiles {
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

    /// Whole blocks, to write.
    ///
    /// # Safety
    /// As [`ActivationTiles::tile_mut`].
    unsafe fn tile_mut(&self, elems: &Range<usize>) -> Q8TileMut<'_> {
        let part = |per: usize| elems.start / per..elems.end / per;
        // SAFETY: the caller's promise.
        unsafe {
            Q8TileMut {
                block: self.block,
                q: self.q.write(part(1)),
                neg_sums16: self.neg_sums16.write(part(16)),
                neg_sums32: self.neg_sums32.write(part(32)),
                scale: self.scale.write(part(self.block)),
            }
        }
    }
}

/// Room for the tiles of one launch, in each rounding that the executable uses.
pub struct ActivationTiles {
    f32: Shared<f32>,
    f16: Shared<f32>,
    q8x32: Q8Tiles,
    q8x256: Q8Tiles,
}

/// One tile in 8 bits, to write.
pub struct Q8TileMut<'a> {
    /// Elements under a scale.
    pub block: usize,
    /// As in [`TileStep`].
    pub q: &'a mut [i8],
    /// As in [`TileStep`].
    pub neg_sums16: &'a mut [i32],
    /// As in [`TileStep`].
    pub neg_sums32: &'a mut [i32],
    /// As in [`TileStep`].
    pub scale: &'a mut [f32],
}

/// One tile in the roundings that are wanted, to write.
pub struct TileMut<'a> {
    /// Slots of the tile.
    pub tokens: usize,
    /// As they are.
    pub f32: Option<&'a mut [f32]>,
    /// Rounded to f16.
    pub f16: Option<&'a mut [f32]>,
    /// 8 bits in blocks of 32, and of 256.
    pub q8: [Option<Q8TileMut<'a>>; 2],
}

/// Tiles that are complete.
#[derive(Clone, Copy)]
pub struct FilledTiles<'a>(&'a ActivationTiles);

impl ActivationTiles {
    /// Room for `elems` elements (slots × inner) in each of `kinds`.
    pub fn new(kinds: Kinds, elems: usize) -> ActivationTiles {
        let room = |wanted: bool| if wanted { elems } else { 0 };
        ActivationTiles {
            f32: Shared::new(room(kinds.f32)),
            f16: Shared::new(room(kinds.f16)),
            q8x32: Q8Tiles::new(32, room(kinds.q8x32)),
            q8x256: Q8Tiles::new(256, room(kinds.q8x256)),
        }
    }

    /// A tile of rows of `inner` elements, to write.
    ///
    /// # Safety
    /// Nobody else touches the elements from `tile.first` · inner on, as many as the tile has, until the next barrier.
    pub unsafe fn tile_mut(&self, kinds: Kinds, tile: Tile, inner: usize) -> TileMut<'_> {
        let elems = tile.first * inner..(tile.first + tile.tokens) * inner;
        // SAFETY: the caller's promise.
        unsafe {
            TileMut {
                tokens: tile.tokens,
                f32: kinds.f32.then(|| self.f32.write(elems.clone())),
                f16: kinds.f16.then(|| self.f16.write(elems.clone())),
                q8: [
                    kinds.q8x32.then(|| self.q8x32.tile_mut(&elems)),
                    kinds.q8x256.then(|| self.q8x256.tile_mut(&elems)),
                ],
            }
        }
    }

    /// As [`ActivationTiles::tile_mut`], of a worker's own room.
    pub fn own_tile_mut(&mut self, kinds: Kinds, tile: Tile, inner: usize) -> TileMut<'_> {
        // SAFETY: `&mut self`.
        unsafe { self.tile_mut(kinds, tile, inner) }
    }

    /// The tiles, to read.
    ///
    /// # Safety
    /// Nobody writes to them for as long as they are read: they were filled before the last barrier.
    pub unsafe fn filled(&self) -> FilledTiles<'_> {
        FilledTiles(self)
    }

    /// As [`ActivationTiles::filled`], of a worker's own room.
    pub fn own_filled(&mut self) -> FilledTiles<'_> {
        FilledTiles(self)
    }
}

impl<'a> FilledTiles<'a> {
    /// Step `step` of a tile in 8 bits.
    pub fn q8(self, block: ActBlock, tile: Tile, inner: usize, step: usize) -> TileStep<'a> {
        let tiles = if block == ActBlock::X32 { &self.0.q8x32 } else { &self.0.q8x256 };
        let start = tile.first * inner + step * STEP_ELEMS * tile.tokens;
        let end = (tile.first + tile.tokens) * inner;
        // SAFETY: nobody writes, as promised to `filled`.
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
    pub fn floats(self, f16: bool, tile: Tile, inner: usize, step: usize) -> &'a [f32] {
        let values = if f16 { &self.0.f16 } else { &self.0.f32 };
        let start = tile.first * inner + step * STEP_ELEMS * tile.tokens;
        // SAFETY: as for `q8`.
        unsafe { values.read(start..(tile.first + tile.tokens) * inner) }
    }
}
