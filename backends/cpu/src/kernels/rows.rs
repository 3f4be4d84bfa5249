//! Whole rows of weights with the activations of one token, or of a few: the decode step's products, by instruction set.

use super::dispatch::{Isa, Kernels};
use super::layout::{STEP_ELEMS, TileStep};
#[cfg(target_arch = "aarch64")]
use super::neon;
#[cfg(target_arch = "x86_64")]
use super::prefetch::{Asked, Cache};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use moe_run_graph::quant::Format;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1};

/// Tokens up to which rows are unpacked in registers for all of them; for more, panels are (Emerald Rapids, `crowd_speed`).
#[cfg(target_arch = "x86_64")]
const FEW_TOKENS: usize = 6;

impl Kernels {
    /// `out` = the products of as many whole rows of `inner` elements with one token's tile, unpacked on the way; false
    /// where there is no such kernel for the format, the tile's block length or the instruction set. `then` is what will
    /// be read next, empty where that lies behind the rows or is not known: its first bytes are asked for on the way.
    ///
    /// # Panics
    /// If the rows or the tile are shorter than that.
    pub fn dot_rows(
        self,
        format: Format,
        bytes: &[u8],
        inner: usize,
        tile: TileStep<'_>,
        then: &[u8],
        out: &mut [f32],
    ) -> bool {
        if tile.scale_per_step != format.is_super_block() {
            return false;
        }
        let rows = rows_of(format, bytes, inner, out.len());
        assert!(
            tile.q.len() >= inner
                && tile.scale.len() >= inner / if tile.scale_per_step { STEP_ELEMS } else { 32 }
        );
        assert!(tile.neg_sums16.len() >= inner / 16 && tile.neg_sums32.len() >= inner / 32);
        let at = rows.as_ptr();
        #[cfg(target_arch = "x86_64")]
        let asked = Asked::new(self.lookahead, rows, then);
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (then, self.lookahead);
        // SAFETY: the tag is checked against the CPU, the lengths above.
        unsafe {
            match self.isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => match self.lookahead.into {
                    Cache::L1 => avx512::dot::dot::<_MM_HINT_T0>(format, at, inner, tile, asked, out),
                    Cache::L2 => avx512::dot::dot::<_MM_HINT_T1>(format, at, inner, tile, asked, out),
                },
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => match self.lookahead.into {
                    Cache::L1 => avx2::dot::dot::<_MM_HINT_T0>(format, at, inner, tile, asked, out),
                    Cache::L2 => avx2::dot::dot::<_MM_HINT_T1>(format, at, inner, tile, asked, out),
                },
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => neon::dot::dot(format, at, inner, tile, out),
                _ => false,
            }
        }
    }

    /// Tokens, 1 to 8, up to which [`Kernels::dot_few`] is the way for rows of a format with activations of its own blocks.
    pub fn few_tokens(self, format: Format) -> usize {
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if avx512::few::has(format) => FEW_TOKENS,
            _ => {
                let _ = format;
                1
            }
        }
    }

    /// The products of `count` rows with each of some one-token tiles, as [`Kernels::dot_rows`] gives them: those of tile t are put to
    /// `out` from t · `stride` on.
    ///
    /// # Panics
    /// If there is no such kernel for as many ([`Kernels::few_tokens`]); as [`Kernels::dot_rows`].
    pub fn dot_few(
        self,
        format: Format,
        bytes: &[u8],
        inner: usize,
        tiles: &[TileStep<'_>],
        then: &[u8],
        count: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        let n = tiles.len();
        assert!(n > 0 && n <= self.few_tokens(format), "{n} tokens at once, of {format}");
        assert!(count <= stride && out.len() >= (n - 1) * stride + count);
        let rows = rows_of(format, bytes, inner, count);
        let scales = inner / if format.is_super_block() { STEP_ELEMS } else { 32 };
        for tile in tiles {
            assert!(tile.scale_per_step == format.is_super_block() && tile.scale.len() >= scales);
            assert!(tile.q.len() >= inner && tile.neg_sums16.len() >= inner / 16);
            assert!(tile.neg_sums32.len() >= inner / 32);
        }
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Avx512 {
            let (at, asked) = (rows.as_ptr(), Asked::new(self.lookahead, rows, then));
            // SAFETY: the tag is checked against the CPU, the lengths above.
            unsafe {
                match self.lookahead.into {
                    Cache::L1 => {
                        avx512::few::dot::<_MM_HINT_T0>(format, at, inner, tiles, asked, count, out, stride)
                    }
                    Cache::L2 => {
                        avx512::few::dot::<_MM_HINT_T1>(format, at, inner, tiles, asked, count, out, stride)
                    }
                }
            }
            return;
        }
        let _ = (rows, then);
        for (tile, out) in tiles.iter().zip(out.chunks_mut(stride)) {
            assert!(self.dot_rows(format, bytes, inner, *tile, then, &mut out[..count]));
        }
    }

    /// As [`Kernels::dot_rows`], for F32, F16 and BF16 against the floats `x`, as many as a row has; summed in f64 if `wide`.
    ///
    /// # Panics
    /// If the rows are shorter than that.
    pub fn dot_floats(
        self,
        format: Format,
        bytes: &[u8],
        x: &[f32],
        wide: bool,
        then: &[u8],
        out: &mut [f32],
    ) -> bool {
        let inner = x.len();
        let rows = rows_of(format, bytes, inner, out.len());
        #[cfg(target_arch = "x86_64")]
        {
            let (at, x) = (rows.as_ptr(), x.as_ptr());
            let asked = Asked::new(self.lookahead, rows, then);
            // SAFETY: the tag is checked against the CPU, the lengths above.
            unsafe {
                match (self.isa, self.lookahead.into) {
                    (Isa::Avx512, Cache::L1) => {
                        avx512::dot_floats::dot::<_MM_HINT_T0>(format, at, inner, x, wide, asked, out)
                    }
                    (Isa::Avx512, Cache::L2) => {
                        avx512::dot_floats::dot::<_MM_HINT_T1>(format, at, inner, x, wide, asked, out)
                    }
                    (Isa::Avx2, Cache::L1) => {
                        avx2::dot::dot_floats::<_MM_HINT_T0>(format, at, inner, x, wide, asked, out)
                    }
                    (Isa::Avx2, Cache::L2) => {
                        avx2::dot::dot_floats::<_MM_HINT_T1>(format, at, inner, x, wide, asked, out)
                    }
                    _ => false,
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (rows, wide, then);
            false
        }
    }
}

/// The bytes of the first `count` rows.
fn rows_of(format: Format, bytes: &[u8], inner: usize, count: usize) -> &[u8] {
    let wanted = format.row_bytes(inner).and_then(|row| row.checked_mul(count));
    let rows = wanted.and_then(|wanted| bytes.get(..wanted));
    let Some(rows) = rows else {
        panic!("{count} rows of {inner} elements of {format} in {} bytes", bytes.len());
    };
    rows
}
