//! Blocks of 32 elements of four rows in registers, four blocks at a time: unpacked once, multiplied with as many tokens as there
//! are.

use super::super::layout::TileStep;
use super::super_blocks::{fold_lanes, half_bits, join};
use std::arch::x86_64::*;

/// Q8_0's elements of two blocks, plus 128.
///
/// # Safety
/// The blocks are readable.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn q8_0([first, second]: [*const u8; 2]) -> __m512i {
    // SAFETY: the caller's promise.
    _mm512_xor_si512(unsafe { join(first.add(2), second.add(2)) }, _mm512_set1_epi8(i8::MIN))
}

/// Q4_0's elements of two blocks, plus 8: the low nibbles of 16 bytes, then the high ones.
///
/// # Safety
/// As [`q8_0`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn q4_0(blocks: [*const u8; 2]) -> __m512i {
    // SAFETY: the caller's promise.
    let [first, second] =
        blocks.map(|block| _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(block.add(2).cast()) }));
    let x = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
    let by = _mm512_set_epi64(HIGH, HIGH, 0, 0, HIGH, HIGH, 0, 0);
    _mm512_and_si512(_mm512_srlv_epi16(x, by), _mm512_set1_epi8(15))
}

/// Four words that shift to the high nibbles.
const HIGH: i64 = 0x0004_0004_0004_0004;

/// Four blocks of each of four rows, unpacked.
#[derive(Clone, Copy)]
pub(super) struct SmallBlocks {
    /// Of two blocks each, and each row, 64 elements.
    u: [[__m512i; 4]; 2],
    /// d: 128 bits a block, a row in a lane.
    d: __m512,
}

impl SmallBlocks {
    /// Blocks of `BYTES` bytes that begin with d, of which `left` exist. `elements` gives the u of two.
    ///
    /// # Safety
    /// So many blocks are readable from each of `rows` on.
    #[inline(always)]
    pub(super) unsafe fn unpack<const BYTES: usize>(
        rows: [*const u8; 4],
        left: usize,
        elements: &impl Fn([*const u8; 2]) -> __m512i,
    ) -> SmallBlocks {
        // SAFETY: the caller's promise.
        unsafe {
            let last = left - 1;
            let offsets = [0, BYTES * last.min(1), BYTES * last.min(2), BYTES * last.min(3)];
            let (mut u, mut bits) = ([[_mm512_setzero_si512(); 4]; 2], [0; 4]);
            for r in 0..4 {
                let block = |i: usize| rows[r].add(offsets[i]);
                u[0][r] = elements([block(0), block(1)]);
                u[1][r] = elements([block(2), block(3)]);
                let half = |i| u64::from(half_bits(block(i)));
                bits[r] = (half(0) | half(1) << 16 | half(2) << 32 | half(3) << 48).cast_signed();
            }
            SmallBlocks { u, d: block_scales(bits) }
        }
    }

    /// d · a and u·q − `zero`·Σq of each block, a row in a lane.
    ///
    /// # Safety
    /// `q` has 128 elements, `scales` four.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn times(&self, q: *const i8, scales: *const f32, zero: u8) -> [[__m128; 4]; 2] {
        // SAFETY: the caller's promise; no load needs alignment.
        unsafe {
            let mut ints = self.u;
            for (pair, ints) in ints.iter_mut().enumerate() {
                let x = Pair::new(_mm512_loadu_si512(q.add(64 * pair).cast()), zero);
                for ints in ints {
                    *ints = x.times(*ints);
                }
            }
            let scaled = _mm512_mul_ps(self.d, spread(_mm_loadu_ps(scales)));
            [lanes(scaled), lanes(_mm512_cvtepi32_ps(fold_blocks(ints)))]
        }
    }
}

/// The activations of up to four blocks from the one of number `first` on, with zeros for those beyond the tile's end.
#[derive(Clone, Copy)]
pub(super) struct LastBlocks {
    q: [i8; 128],
    scales: [f32; 4],
}

impl LastBlocks {
    /// Nothing yet.
    pub(super) const NONE: LastBlocks = LastBlocks { q: [0; 128], scales: [0.0; 4] };

    /// Where the `left` blocks from `first` on of a tile are followed by readable ones, or by zeros.
    ///
    /// # Safety
    /// The tile has the blocks.
    #[inline(always)]
    pub(super) unsafe fn of(
        &mut self,
        tile: &TileStep<'_>,
        first: usize,
        left: usize,
    ) -> (*const i8, *const f32) {
        if left == 4 {
            // SAFETY: the caller's promise.
            return unsafe { (tile.q.as_ptr().add(32 * first), tile.scale.as_ptr().add(first)) };
        }
        self.q[..32 * left].copy_from_slice(&tile.q[32 * first..][..32 * left]);
        self.scales[..left].copy_from_slice(&tile.scale[first..][..left]);
        (self.q.as_ptr(), self.scales.as_ptr())
    }
}

/// The four 128 bits of a vector.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn lanes(x: __m512) -> [__m128; 4] {
    [
        _mm512_castps512_ps128(x),
        _mm512_extractf32x4_ps::<1>(x),
        _mm512_extractf32x4_ps::<2>(x),
        _mm512_extractf32x4_ps::<3>(x),
    ]
}

/// Each of four floats in all lanes of 128 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread(x: __m128) -> __m512 {
    _mm512_permutexvar_ps(
        _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
        _mm512_castps128_ps512(x),
    )
}

/// The f16 of four blocks of each of four rows, a row's in 64 bits, as floats: 128 bits a block, a row in a lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn block_scales([a, b, c, d]: [i64; 4]) -> __m512 {
    let by_block = _mm256_setr_epi16(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_cvtph_ps(_mm256_permutexvar_epi16(by_block, _mm256_setr_epi64x(a, b, c, d)))
}

/// Of four rows, the sums of four halves of vectors, two of each vector: 128 bits a half, a row in a lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn fold_blocks(ints: [[__m512i; 4]; 2]) -> __m512i {
    let [x, y] = ints;
    let (x, y) = (fold_lanes(x), fold_lanes(y));
    let even = _mm512_shuffle_i32x4::<0b10_00_10_00>(x, y);
    _mm512_add_epi32(even, _mm512_shuffle_i32x4::<0b11_01_11_01>(x, y))
}

/// The activations of two blocks of 32: what all rows share.
#[derive(Clone, Copy)]
struct Pair {
    q: __m512i,
    /// −zero · Σq of four elements, for each four.
    offsets: __m512i,
}

impl Pair {
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn new(q: __m512i, zero: u8) -> Pair {
        let none = _mm512_setzero_si512();
        let offsets = _mm512_dpbusd_epi32(none, _mm512_set1_epi8(zero.cast_signed()), q);
        Pair { q, offsets: _mm512_sub_epi32(none, offsets) }
    }

    /// u·q − zero·Σq of both blocks, each in the lanes of its half.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn times(self, u: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(self.offsets, u, self.q)
    }
}
