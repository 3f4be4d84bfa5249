//! Unpacking a panel with AVX-512: 16 bytes of each of 16 rows are loaded into the lanes of four vectors and
//! transposed as 4 × 4 dwords inside each lane, which leaves four consecutive bytes of all 16 rows in one vector. Bits
//! are then taken apart 64 at a time. Scales go the same way. Formats whose codes are looked up are in `coded.rs`.

use super::super::layout::{IntLanes, Lanes, PANEL_ROWS, Panel, PanelF32};
use super::super::unpack::{E2M1_LEVELS, IQ4_LEVELS};
use super::coded;
use half::f16;
use moe_run_graph::quant::Format;
use std::arch::x86_64::*;

/// Where a panel's rows are: `rows` may not be fewer than 16.
#[derive(Clone, Copy)]
pub struct Rows {
    /// The first row.
    pub at: *const u8,
    /// Bytes from row to row.
    pub stride_bytes: usize,
}

impl Rows {
    /// The same rows, `bytes` further on.
    #[inline]
    pub fn offset(self, bytes: usize) -> Rows {
        Rows { at: self.at.wrapping_add(bytes), ..self }
    }

    /// Bytes 0..16 of each row: vector j holds bytes 4j..4j + 4 of row 0, of row 1, … of row 15.
    ///
    /// # Safety
    /// 16 bytes are readable in each of the 16 rows; the CPU has AVX-512 F.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn load(self) -> [__m512i; 4] {
        let (p, s) = (self.at, self.stride_bytes);
        let mut x = [_mm512_setzero_si512(); 4];
        for (i, x) in x.iter_mut().enumerate() {
            // SAFETY: rows i, 4 + i, 8 + i and 12 + i are readable.
            unsafe {
                let row = |r: usize| _mm_loadu_si128(p.add((r + i) * s).cast());
                let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(row(0)), row(4));
                let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(row(8)), row(12));
                *x = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            }
        }
        let (a, b) = (_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
        let (c, d) = (_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
        [
            _mm512_unpacklo_epi64(a, c),
            _mm512_unpackhi_epi64(a, c),
            _mm512_unpacklo_epi64(b, d),
            _mm512_unpackhi_epi64(b, d),
        ]
    }

    /// The f16 at the start of each row.
    ///
    /// # Safety
    /// 2 bytes are readable in each row; the CPU has AVX-512 F.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw")]
    unsafe fn halves(self) -> __m512 {
        let mut bits = [0u16; PANEL_ROWS];
        for (r, bits) in bits.iter_mut().enumerate() {
            // SAFETY: the caller vouches for the rows.
            *bits = unsafe { self.at.add(r * self.stride_bytes).cast::<u16>().read_unaligned() };
        }
        // SAFETY: `bits` is 32 bytes.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bits.as_ptr().cast()) })
    }
}

/// Stores vector `k4` of the panel: elements 4·k4.. of all rows.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn put(panel: &mut Panel, k4: usize, x: __m512i) {
    let to = &mut panel.q[k4 * 4 * PANEL_ROWS..][..4 * PANEL_ROWS];
    // SAFETY: `to` is 64 bytes; the panel is aligned to 64.
    unsafe { _mm512_store_si512(to.as_mut_ptr().cast(), x) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn put_lanes(to: &mut Lanes, x: __m512) {
    // SAFETY: `Lanes` is 64 bytes, aligned to 64.
    unsafe { _mm512_store_ps(to.0.as_mut_ptr(), x) }
}

/// (x >> SHIFT) & mask, byte by byte, for masks that let no bit of the neighbour byte through.
#[inline]
#[target_feature(enable = "avx512f")]
fn bits<const SHIFT: u32>(x: __m512i, mask: u8) -> __m512i {
    _mm512_and_si512(_mm512_srli_epi32::<SHIFT>(x), _mm512_set1_epi8(mask as i8))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn put_ints(to: &mut IntLanes, x: __m512i) {
    // SAFETY: `IntLanes` is 64 bytes, aligned to 64.
    unsafe { _mm512_store_si512(to.0.as_mut_ptr().cast(), x) }
}

/// The four bytes of each dword to four consecutive sub-blocks.
#[inline]
#[target_feature(enable = "avx512f")]
fn put_scales(to: &mut [IntLanes], x: __m512i) {
    let byte = _mm512_set1_epi32(255);
    put_ints(&mut to[0], _mm512_and_si512(x, byte));
    put_ints(&mut to[1], _mm512_and_si512(_mm512_srli_epi32::<8>(x), byte));
    put_ints(&mut to[2], _mm512_and_si512(_mm512_srli_epi32::<16>(x), byte));
    put_ints(&mut to[3], _mm512_srli_epi32::<24>(x));
}

/// As [`put_scales`], for signed bytes.
#[inline]
#[target_feature(enable = "avx512f")]
fn put_signed_scales(to: &mut [IntLanes], x: __m512i) {
    put_ints(&mut to[0], _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(x)));
    put_ints(&mut to[1], _mm512_srai_epi32::<24>(_mm512_slli_epi32::<16>(x)));
    put_ints(&mut to[2], _mm512_srai_epi32::<24>(_mm512_slli_epi32::<8>(x)));
    put_ints(&mut to[3], _mm512_srai_epi32::<24>(x));
}

#[inline]
#[target_feature(enable = "avx512f")]
fn low_half(x: __m512i) -> __m512 {
    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn high_half(x: __m512i) -> __m512 {
    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(x)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn negate(x: __m512) -> __m512 {
    _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MIN)))
}

/// Unpacks one step of 16 rows.
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ and VL. From `at` on, each of 16 rows `stride_bytes` apart holds `elems` elements of
/// the quantized `format`, a whole number of blocks, at most 256.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn unpack(format: Format, at: *const u8, stride_bytes: usize, elems: usize, panel: &mut Panel) {
    let rows = Rows { at, stride_bytes };
    // SAFETY: each arm reads inside the blocks of the format that the caller vouches for.
    unsafe {
        match format {
            Format::Q4K => k4_or_k5::<false>(rows, panel),
            Format::Q5K => k4_or_k5::<true>(rows, panel),
            Format::Q6K => q6_k(rows, panel),
            Format::Q2K => q2_k(rows, panel),
            Format::Q3K => q3_k(rows, panel),
            Format::Iq4Xs => iq4_xs(rows, panel),
            Format::Q8_0 => {
                for b in 0..elems / 32 {
                    let block = rows.offset(b * 34);
                    put_lanes(&mut panel.scale[b], block.halves());
                    for c in 0..2 {
                        for (j, x) in block.offset(2 + 16 * c).load().into_iter().enumerate() {
                            let x = _mm512_xor_si512(x, _mm512_set1_epi8(i8::MIN));
                            put(panel, b * 8 + c * 4 + j, x);
                        }
                    }
                }
            }
            Format::Q4_0 => small_blocks::<18, 2, false>(rows, elems, None, panel),
            Format::Q4_1 => small_blocks::<20, 4, false>(rows, elems, None, panel),
            Format::Q5_0 => small_blocks::<22, 6, true>(rows, elems, None, panel),
            Format::Q5_1 => small_blocks::<24, 8, true>(rows, elems, None, panel),
            Format::Iq4Nl => small_blocks::<18, 2, false>(rows, elems, Some(&IQ4_LEVELS), panel),
            Format::Mxfp4 => small_blocks::<17, 1, false>(rows, elems, Some(&E2M1_LEVELS), panel),
            Format::Iq2Xxs
            | Format::Iq2Xs
            | Format::Iq2S
            | Format::Iq3Xxs
            | Format::Iq3S
            | Format::Iq1S
            | Format::Iq1M
            | Format::Tq1_0
            | Format::Tq2_0
            | Format::Nvfp4
            | Format::Q1_0
            | Format::Q2_0 => coded::unpack(format, rows, elems, panel),
            Format::F32 | Format::F16 | Format::Bf16 => {}
        }
    }
}

/// The 32-element formats with nibbles: `HEADER` bytes of scale, minimum and (with `FIFTH`) 4 bytes of fifth bits.
///
/// # Safety
/// As [`unpack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn small_blocks<const BYTES: usize, const HEADER: usize, const FIFTH: bool>(
    rows: Rows,
    elems: usize,
    levels: Option<&[u8; 16]>,
    panel: &mut Panel,
) {
    for b in 0..elems / 32 {
        let block = rows.offset(b * BYTES);
        // SAFETY: header and nibbles lie inside the block.
        unsafe {
            let mut fifth = _mm512_setzero_si512();
            if HEADER == 1 {
                put_lanes(&mut panel.scale[b], e8m0(block));
            } else if HEADER.is_multiple_of(4) {
                let head = block.load();
                put_lanes(&mut panel.scale[b], low_half(head[0]));
                put_lanes(&mut panel.min[b], negate(high_half(head[0])));
                fifth = head[1];
            } else {
                put_lanes(&mut panel.scale[b], block.halves());
                if FIFTH {
                    fifth = block.offset(2).load()[0];
                }
            }
            let x = block.offset(HEADER).load();
            for j in 0..4 {
                let mut low = bits::<0>(x[j], 15);
                let mut high = bits::<4>(x[j], 15);
                if FIFTH {
                    low = _mm512_or_si512(low, spread_bits(fifth, 4 * j));
                    high = _mm512_or_si512(high, spread_bits(fifth, 16 + 4 * j));
                }
                if let Some(levels) = levels {
                    let table = _mm512_broadcast_i32x4(_mm_loadu_si128(levels.as_ptr().cast()));
                    low = _mm512_shuffle_epi8(table, low);
                    high = _mm512_shuffle_epi8(table, high);
                }
                put(panel, b * 8 + j, low);
                put(panel, b * 8 + 4 + j, high);
            }
        }
    }
}

/// Bits `from`..`from + 4` of each dword, as bit 4 of its four bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn spread_bits(x: __m512i, from: usize) -> __m512i {
    // The wanted nibble's bits 0..4 to bits 0, 8, 16, 24 by one multiplication (no carries: the copies of the nibble
    // lie 7 bits apart and only one bit of each is kept), then to bit 4.
    let nibble =
        _mm512_and_si512(_mm512_srlv_epi32(x, _mm512_set1_epi32(from as i32)), _mm512_set1_epi32(15));
    let copies = _mm512_mullo_epi32(nibble, _mm512_set1_epi32(0x0020_4081));
    _mm512_slli_epi32::<4>(_mm512_and_si512(copies, _mm512_set1_epi32(0x0101_0101)))
}

/// 2^(e − 128) of each row's first byte.
///
/// # Safety
/// A byte is readable in each row.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn e8m0(rows: Rows) -> __m512 {
    let mut scales = [0f32; PANEL_ROWS];
    for (r, scale) in scales.iter_mut().enumerate() {
        // SAFETY: the caller vouches for the rows.
        let e = u32::from(unsafe { *rows.at.add(r * rows.stride_bytes) });
        *scale = f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 });
    }
    // SAFETY: 16 floats.
    unsafe { _mm512_loadu_ps(scales.as_ptr()) }
}

/// Q4_K and Q5_K. The 16 bytes of d, dmin and packed scales are four dwords, transposed like everything else.
///
/// # Safety
/// As [`unpack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn k4_or_k5<const FIFTH: bool>(rows: Rows, panel: &mut Panel) {
    // SAFETY: 144 or 176 bytes a block.
    unsafe {
        let [dd, s0, s1, s2] = rows.load();
        put_lanes(&mut panel.scale[0], low_half(dd));
        put_lanes(&mut panel.min[0], high_half(dd));
        // Sub-blocks 0..4: 6 bits of s0 (scales) and s1 (minima). 4..8: nibbles of s2, with the top bits of s0 and s1.
        put_scales(&mut panel.sub_scale[0..4], bits::<0>(s0, 63));
        put_scales(&mut panel.sub_min[0..4], bits::<0>(s1, 63));
        let scales = _mm512_or_si512(bits::<0>(s2, 15), bits::<2>(s0, 0x30));
        put_scales(&mut panel.sub_scale[4..8], scales);
        let mins = _mm512_or_si512(bits::<4>(s2, 15), bits::<2>(s1, 0x30));
        put_scales(&mut panel.sub_min[4..8], mins);
        let qs = rows.offset(if FIFTH { 48 } else { 16 });
        if FIFTH {
            // Chunk c of 16 elements of every sub-block shares 16 bytes of fifth bits.
            for c in 0..2 {
                let fifth = rows.offset(16 + 16 * c).load();
                for pair in 0..4 {
                    let x = qs.offset(pair * 32 + 16 * c).load();
                    for j in 0..4 {
                        let both = _mm512_srlv_epi32(fifth[j], _mm512_set1_epi32(2 * pair as i32));
                        let one = _mm512_set1_epi8(1);
                        let low = _mm512_slli_epi32::<4>(_mm512_and_si512(both, one));
                        let high =
                            _mm512_slli_epi32::<4>(_mm512_and_si512(_mm512_srli_epi32::<1>(both), one));
                        put(panel, pair * 16 + c * 4 + j, _mm512_or_si512(bits::<0>(x[j], 15), low));
                        put(panel, pair * 16 + 8 + c * 4 + j, _mm512_or_si512(bits::<4>(x[j], 15), high));
                    }
                }
            }
        } else {
            for chunk in 0..8 {
                let x = qs.offset(16 * chunk).load();
                let k4 = chunk / 2 * 16 + chunk % 2 * 4;
                for j in 0..4 {
                    put(panel, k4 + j, bits::<0>(x[j], 15));
                    put(panel, k4 + 8 + j, bits::<4>(x[j], 15));
                }
            }
        }
    }
}

/// # Safety
/// As [`unpack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn q6_k(rows: Rows, panel: &mut Panel) {
    // SAFETY: 210 bytes a block.
    unsafe {
        put_lanes(&mut panel.scale[0], rows.offset(208).halves());
        for (i, x) in rows.offset(192).load().into_iter().enumerate() {
            put_signed_scales(&mut panel.sub_scale[4 * i..4 * i + 4], x);
        }
        for half in 0..2 {
            for c in 0..2 {
                let top = rows.offset(128 + half * 32 + 16 * c).load();
                let first = rows.offset(half * 64 + 16 * c).load();
                let second = rows.offset(half * 64 + 32 + 16 * c).load();
                for j in 0..4 {
                    let k4 = half * 32 + c * 4 + j;
                    let top0 = _mm512_and_si512(_mm512_slli_epi32::<4>(top[j]), _mm512_set1_epi8(0x30));
                    let top1 = _mm512_and_si512(_mm512_slli_epi32::<2>(top[j]), _mm512_set1_epi8(0x30));
                    put(panel, k4, _mm512_or_si512(bits::<0>(first[j], 15), top0));
                    put(panel, k4 + 8, _mm512_or_si512(bits::<0>(second[j], 15), top1));
                    put(panel, k4 + 16, _mm512_or_si512(bits::<4>(first[j], 15), bits::<0>(top[j], 0x30)));
                    put(panel, k4 + 24, _mm512_or_si512(bits::<4>(second[j], 15), bits::<2>(top[j], 0x30)));
                }
            }
        }
    }
}

/// # Safety
/// As [`unpack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn q2_k(rows: Rows, panel: &mut Panel) {
    // SAFETY: 84 bytes a block.
    unsafe {
        put_lanes(&mut panel.scale[0], rows.offset(80).halves());
        put_lanes(&mut panel.min[0], rows.offset(82).halves());
        for (i, x) in rows.load().into_iter().enumerate() {
            put_scales(&mut panel.sub_scale[4 * i..4 * i + 4], bits::<0>(x, 15));
            put_scales(&mut panel.sub_min[4 * i..4 * i + 4], bits::<4>(x, 15));
        }
        for chunk in 0..4 {
            let x = rows.offset(16 + 16 * chunk).load();
            for j in 0..4 {
                let k4 = chunk / 2 * 32 + chunk % 2 * 4 + j;
                put(panel, k4, bits::<0>(x[j], 3));
                put(panel, k4 + 8, bits::<2>(x[j], 3));
                put(panel, k4 + 16, bits::<4>(x[j], 3));
                put(panel, k4 + 24, bits::<6>(x[j], 3));
            }
        }
    }
}

/// # Safety
/// As [`unpack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn q3_k(rows: Rows, panel: &mut Panel) {
    // SAFETY: 110 bytes a block; the scales are read as the last 16 bytes from 94 on, dwords offset by two bytes.
    unsafe {
        put_lanes(&mut panel.scale[0], rows.offset(108).halves());
        // Bytes 92..108: the last 4 of qs, then three dwords of scales.
        let [_, s0, s1, top] = rows.offset(92).load();
        let bias = _mm512_set1_epi8(32);
        for i in 0..4 {
            let low = match i {
                0 => bits::<0>(s0, 15),
                1 => bits::<0>(s1, 15),
                2 => bits::<4>(s0, 15),
                _ => bits::<4>(s1, 15),
            };
            let two = _mm512_srlv_epi32(top, _mm512_set1_epi32(2 * i as i32));
            let high = _mm512_slli_epi32::<4>(_mm512_and_si512(two, _mm512_set1_epi8(3)));
            let scale = _mm512_sub_epi8(_mm512_or_si512(low, high), bias);
            put_signed_scales(&mut panel.sub_scale[4 * i..4 * i + 4], scale);
        }
        for c in 0..2 {
            let mask = rows.offset(16 * c).load();
            for half in 0..2 {
                let x = rows.offset(32 + 32 * half + 16 * c).load();
                for j in 0..4 {
                    let third = _mm512_srlv_epi32(mask[j], _mm512_set1_epi32(4 * half as i32));
                    let k4 = half * 32 + c * 4 + j;
                    let four = |x: __m512i| _mm512_and_si512(x, _mm512_set1_epi8(4));
                    put(panel, k4, _mm512_or_si512(bits::<0>(x[j], 3), four(_mm512_slli_epi32::<2>(third))));
                    put(
                        panel,
                        k4 + 8,
                        _mm512_or_si512(bits::<2>(x[j], 3), four(_mm512_slli_epi32::<1>(third))),
                    );
                    put(panel, k4 + 16, _mm512_or_si512(bits::<4>(x[j], 3), four(third)));
                    put(
                        panel,
                        k4 + 24,
                        _mm512_or_si512(bits::<6>(x[j], 3), four(_mm512_srli_epi32::<1>(third))),
                    );
                }
            }
        }
    }
}

/// # Safety
/// As [`unpack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn iq4_xs(rows: Rows, panel: &mut Panel) {
    // SAFETY: 136 bytes a block.
    unsafe {
        let [head, low, ..] = rows.load();
        put_lanes(&mut panel.scale[0], low_half(head));
        for s in 0..8u32 {
            let l = _mm512_and_si512(
                _mm512_srlv_epi32(low, _mm512_set1_epi32(4 * s as i32)),
                _mm512_set1_epi32(15),
            );
            let h = _mm512_srlv_epi32(head, _mm512_set1_epi32(16 + 2 * s as i32));
            let h = _mm512_slli_epi32::<4>(_mm512_and_si512(h, _mm512_set1_epi32(3)));
            let scale = _mm512_sub_epi32(_mm512_or_si512(l, h), _mm512_set1_epi32(32));
            put_ints(&mut panel.sub_scale[s as usize], scale);
        }
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(IQ4_LEVELS.as_ptr().cast()));
        for s in 0..8 {
            let x = rows.offset(8 + 16 * s).load();
            for j in 0..4 {
                put(panel, s * 8 + j, _mm512_shuffle_epi8(table, bits::<0>(x[j], 15)));
                put(panel, s * 8 + 4 + j, _mm512_shuffle_epi8(table, bits::<4>(x[j], 15)));
            }
        }
    }
}

/// Unpacks one step of 16 rows of F32, F16 or BF16.
///
/// # Safety
/// As [`unpack`]; `elems` is a multiple of 8 (F16, BF16) or 4 (F32).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn unpack_floats(
    format: Format,
    at: *const u8,
    stride_bytes: usize,
    elems: usize,
    panel: &mut PanelF32,
) {
    let rows = Rows { at, stride_bytes };
    let per_load = if format == Format::F32 { 4 } else { 8 };
    for (c, out) in panel.w[..elems].chunks_exact_mut(per_load).enumerate() {
        // SAFETY: 16 bytes hold `per_load` elements of each row.
        let x = unsafe { rows.offset(16 * c).load() };
        for j in 0..4 {
            match format {
                Format::F32 => put_lanes(&mut out[j], _mm512_castsi512_ps(x[j])),
                Format::F16 => {
                    put_lanes(&mut out[2 * j], low_half(x[j]));
                    put_lanes(&mut out[2 * j + 1], high_half(x[j]));
                }
                _ => {
                    put_lanes(&mut out[2 * j], _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x[j])));
                    let high = _mm512_and_si512(x[j], _mm512_set1_epi32(-65536));
                    put_lanes(&mut out[2 * j + 1], _mm512_castsi512_ps(high));
                }
            }
        }
    }
}

/// f16 to f32, 16 at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
pub fn widen_halves(from: &[f16], to: &mut [f32]) {
    let ((from, rest), (to, to_rest)) = (from.as_chunks::<16>(), to.as_chunks_mut::<16>());
    for (from, to) in from.iter().zip(to) {
        // SAFETY: 32 bytes to read, 64 to write; no alignment is needed.
        unsafe {
            let halves = _mm256_loadu_si256(from.as_ptr().cast());
            _mm512_storeu_ps(to.as_mut_ptr(), _mm512_cvtph_ps(halves));
        }
    }
    for (from, to) in rest.iter().zip(to_rest) {
        *to = from.to_f32();
    }
}
