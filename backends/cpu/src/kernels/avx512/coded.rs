//! Unpacking a panel of the formats whose codes are looked up: AVX2's codes, a row at a time into a table of 16 rows, whose
//! fours of elements are then brought together as every other format's bytes are.

use super::super::avx2::coded::{half, iq1_m_scale};
use super::super::avx2::codes::{self, Codes};
use super::super::layout::{PANEL_ROWS, Panel, STEP_ELEMS};
use super::unpack::{Rows, put};
use moe_run_graph::quant::Format;
use std::arch::x86_64::*;

/// The codes of 16 rows, the panel's zero added.
#[repr(C, align(64))]
struct Table([[u8; STEP_ELEMS]; PANEL_ROWS]);

/// Unpacks one step of 16 rows; nothing of formats that have no codes.
///
/// # Safety
/// As `unpack::unpack`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn unpack(format: Format, rows: Rows, elems: usize, panel: &mut Panel) {
    let mut table = Table([[0; STEP_ELEMS]; PANEL_ROWS]);
    for r in 0..PANEL_ROWS {
        // SAFETY: as the caller promises, each row has whole blocks of the format, `elems` elements.
        unsafe {
            let at = rows.at.add(r * rows.stride_bytes);
            let to = &mut table.0[r];
            match format {
                Format::Iq2Xxs => super_block::<32>(panel, to, r, half(at) * 0.125, codes::iq2_xxs(at)),
                Format::Iq2Xs => super_block::<16>(panel, to, r, half(at) * 0.125, codes::iq2_xs(at)),
                Format::Iq2S => super_block::<16>(panel, to, r, half(at) * 0.125, codes::iq2_s(at)),
                Format::Iq3Xxs => super_block::<32>(panel, to, r, half(at) * 0.25, codes::iq3_xxs(at)),
                Format::Iq3S => super_block::<32>(panel, to, r, half(at), codes::iq3_s(at)),
                Format::Iq1S => super_block::<32>(panel, to, r, half(at) * 0.125, codes::iq1_s(at)),
                Format::Iq1M => super_block::<16>(panel, to, r, iq1_m_scale(at), codes::iq1_m(at)),
                Format::Tq1_0 => super_block::<32>(panel, to, r, half(at.add(52)), codes::tq1_0(at)),
                Format::Tq2_0 => super_block::<32>(panel, to, r, half(at.add(64)), codes::tq2_0(at)),
                Format::Nvfp4 => {
                    for b in 0..elems / 64 {
                        let at = at.add(36 * b);
                        store(&mut to[64 * b..], codes::nvfp4(at), 16);
                        for (s, scale) in codes::nvfp4_scales(at).into_iter().enumerate() {
                            panel.scale[4 * b + s].0[r] = scale;
                        }
                    }
                }
                Format::Q1_0 => {
                    for b in 0..elems / 128 {
                        let at = at.add(18 * b);
                        store(&mut to[128 * b..], codes::q1_0(at), 128);
                        panel.scale[4 * b..][..4].iter_mut().for_each(|scale| scale.0[r] = half(at));
                    }
                }
                Format::Q2_0 => {
                    for b in 0..elems / 64 {
                        let at = at.add(18 * b);
                        store(&mut to[64 * b..], codes::q2_0(at), 128);
                        panel.scale[2 * b..][..2].iter_mut().for_each(|scale| scale.0[r] = half(at));
                    }
                }
                _ => return,
            }
        }
    }
    let table = Rows { at: table.0.as_ptr().cast(), stride_bytes: STEP_ELEMS };
    for c in 0..elems / 16 {
        // SAFETY: the table has 256 bytes a row.
        for (j, x) in unsafe { table.offset(16 * c).load() }.into_iter().enumerate() {
            put(panel, 4 * c + j, x);
        }
    }
}

/// Stores codes as unsigned bytes, `zero` being 0.
#[inline]
#[target_feature(enable = "avx2")]
fn store<const N: usize>(to: &mut [u8], codes: Codes<N>, zero: u8) {
    for (to, codes) in to.as_chunks_mut::<32>().0.iter_mut().zip(codes) {
        let u = _mm256_add_epi8(codes, _mm256_set1_epi8(zero.cast_signed()));
        // SAFETY: 32 bytes; no alignment is needed.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), u) };
    }
}

/// A row's super-block, with a scale for each `SUB` elements.
#[inline]
#[target_feature(enable = "avx2")]
fn super_block<const SUB: usize>(
    panel: &mut Panel,
    to: &mut [u8],
    r: usize,
    d: f32,
    (codes, scales): (Codes<8>, __m256i),
) {
    store(to, codes, 128);
    panel.scale[0].0[r] = d;
    let mut words = [0i16; 16];
    // SAFETY: 32 bytes; no alignment is needed.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), scales) };
    // The even sixteens' scales, then the odd ones'; where a sub-block has both, they are the same.
    for (s, to) in panel.sub_scale[..STEP_ELEMS / SUB].iter_mut().enumerate() {
        to.0[r] = i32::from(if SUB == 16 { words[s / 2 + s % 2 * 8] } else { words[s] });
    }
}
