//! The portable unpacking of every format: it defines what a panel holds, and the SIMD versions must give the same
//! bytes and the same scales, bit for bit.
//!
//! Input: one row's blocks. Output: a [`RowStep`], which `(scale · sub_scale) · (u − zero) − (min · sub_min)` turns into
//! exactly the values that `moe_run_graph::quant` decodes.

use super::layout::{
    IntLanes, Lanes, MAX_BLOCKS, MAX_SUBS, PANEL_ROWS, Panel, PanelF32, PanelLayout, STEP_ELEMS, Zero,
};
use half::{bf16, f16};
use moe_run_graph::quant::Format;

/// The 16 steps of IQ4_NL and IQ4_XS, plus 128.
pub const IQ4_LEVELS: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];
/// Twice the 16 values of E2M1, plus 16.
pub const E2M1_LEVELS: [u8; 16] = [16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4];

/// Up to 256 elements of one row.
pub struct RowStep {
    /// Unsigned elements.
    pub u: [u8; STEP_ELEMS],
    /// A scale for each block.
    pub scale: [f32; MAX_BLOCKS],
    /// A minimum for each block; 0 where the format has none.
    pub min: [f32; MAX_BLOCKS],
    /// What a super-block's scale is multiplied with, for each sub-block.
    pub sub_scale: [i32; MAX_SUBS],
    /// What a super-block's minimum is multiplied with, for each sub-block.
    pub sub_min: [i32; MAX_SUBS],
}

impl RowStep {
    /// All zeros.
    pub fn zeroed() -> RowStep {
        RowStep {
            u: [0; STEP_ELEMS],
            scale: [0.0; MAX_BLOCKS],
            min: [0.0; MAX_BLOCKS],
            sub_scale: [0; MAX_SUBS],
            sub_min: [0; MAX_SUBS],
        }
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Unpacks the blocks of a quantized row that `bytes` holds, at most 256 elements.
pub fn unpack_row(format: Format, bytes: &[u8], row: &mut RowStep) {
    let elems = format.block_elems();
    for (i, block) in bytes.chunks_exact(format.block_bytes()).enumerate() {
        let u = &mut row.u[i * elems..][..elems];
        match format {
            Format::F32 | Format::F16 | Format::Bf16 => unreachable!("floats have no integer panel"),
            Format::Q4_0 => {
                row.scale[i] = half_at(block, 0);
                nibbles(&block[2..], u);
            }
            Format::Q4_1 => {
                (row.scale[i], row.min[i]) = (half_at(block, 0), -half_at(block, 2));
                nibbles(&block[4..], u);
            }
            Format::Q5_0 => {
                row.scale[i] = half_at(block, 0);
                nibbles(&block[6..], u);
                fifth_bits(&block[2..6], u);
            }
            Format::Q5_1 => {
                (row.scale[i], row.min[i]) = (half_at(block, 0), -half_at(block, 2));
                nibbles(&block[8..], u);
                fifth_bits(&block[4..8], u);
            }
            Format::Q8_0 => {
                row.scale[i] = half_at(block, 0);
                for k in 0..32 {
                    u[k] = block[2 + k] ^ 0x80;
                }
            }
            Format::Iq4Nl => {
                row.scale[i] = half_at(block, 0);
                nibbles(&block[2..], u);
                u.iter_mut().for_each(|x| *x = IQ4_LEVELS[usize::from(*x)]);
            }
            Format::Mxfp4 => {
                // 2^(e − 127), halved because the levels are doubled; e = 0 and 1 give subnormal numbers.
                let e = u32::from(block[0]);
                row.scale[i] = f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 });
                nibbles(&block[1..], u);
                u.iter_mut().for_each(|x| *x = E2M1_LEVELS[usize::from(*x)]);
            }
            Format::Q2K => q2_k(block, row),
            Format::Q3K => q3_k(block, row),
            Format::Q4K => q4_k(block, row),
            Format::Q5K => q5_k(block, row),
            Format::Q6K => q6_k(block, row),
            Format::Iq4Xs => iq4_xs(block, row),
        }
    }
}

/// Elements 0..16 are the low nibbles, 16..32 the high ones.
fn nibbles(qs: &[u8], u: &mut [u8]) {
    for k in 0..16 {
        u[k] = qs[k] & 15;
        u[k + 16] = qs[k] >> 4;
    }
}

/// Bit k of the little-endian word is bit 4 of element k.
fn fifth_bits(qh: &[u8], u: &mut [u8]) {
    for k in 0..32 {
        u[k] |= ((qh[k / 8] >> (k % 8)) & 1) << 4;
    }
}

/// scales[16] (low nibble scale, high nibble minimum), qs[64], d, dmin.
fn q2_k(block: &[u8], row: &mut RowStep) {
    (row.scale[0], row.min[0]) = (half_at(block, 80), half_at(block, 82));
    for s in 0..16 {
        (row.sub_scale[s], row.sub_min[s]) = (i32::from(block[s] & 15), i32::from(block[s] >> 4));
    }
    for k in 0..256 {
        row.u[k] = (block[16 + k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2)) & 3;
    }
}

/// hmask[32], qs[64], scales[12] (16 × 6 bits), d. The bit in hmask is bit 2 of the element.
fn q3_k(block: &[u8], row: &mut RowStep) {
    row.scale[0] = half_at(block, 108);
    let scales = &block[96..108];
    for s in 0..16 {
        let low = if s < 8 { scales[s] & 15 } else { scales[s - 8] >> 4 };
        let high = (scales[8 + s % 4] >> (s / 4 * 2)) & 3;
        row.sub_scale[s] = i32::from(low | high << 4) - 32;
    }
    for k in 0..256 {
        let low = (block[32 + k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2)) & 3;
        let high = (block[k % 32] >> (k / 32)) & 1;
        row.u[k] = low | high << 2;
    }
}

/// The 6-bit scales and minima of the eight sub-blocks of Q4_K and Q5_K from their 12 bytes s0, s1, s2 (four each): of the
/// first four, s0 and s1 hold all six bits; of the others, s2 holds the low four (the scale's in its low nibble) and the two
/// high bits of s0 and s1 those above.
#[inline(always)]
pub fn scales_and_mins_6bit(bytes: [u8; 12]) -> ([u8; 8], [u8; 8]) {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (s0, s1, s2) = (word(0), word(4), word(8));
    let both = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).to_le_bytes();
    (
        both(s0 & 0x3f3f_3f3f, (s2 & 0x0f0f_0f0f) | (s0 >> 2 & 0x3030_3030)),
        both(s1 & 0x3f3f_3f3f, (s2 >> 4 & 0x0f0f_0f0f) | (s1 >> 2 & 0x3030_3030)),
    )
}

/// The scales and minima of a block of Q4_K or Q5_K, which begins with d, dmin and their 12 bytes.
fn k4_or_k5_scales(block: &[u8], row: &mut RowStep) {
    (row.scale[0], row.min[0]) = (half_at(block, 0), half_at(block, 2));
    let mut bytes = [0; 12];
    bytes.copy_from_slice(&block[4..16]);
    let (scales, mins) = scales_and_mins_6bit(bytes);
    for s in 0..8 {
        (row.sub_scale[s], row.sub_min[s]) = (i32::from(scales[s]), i32::from(mins[s]));
    }
}

/// d, dmin, scales[12], qs[128]: 32 bytes hold two sub-blocks, the first in the low nibbles.
fn q4_k(block: &[u8], row: &mut RowStep) {
    k4_or_k5_scales(block, row);
    for k in 0..256 {
        row.u[k] = (block[16 + k / 64 * 32 + k % 32] >> (k % 64 / 32 * 4)) & 15;
    }
}

/// d, dmin, scales[12], qh[32], qs[128]: as Q4_K, bit s of qh[k % 32] being bit 4 of sub-block s.
fn q5_k(block: &[u8], row: &mut RowStep) {
    k4_or_k5_scales(block, row);
    for k in 0..256 {
        let low = (block[48 + k / 64 * 32 + k % 32] >> (k % 64 / 32 * 4)) & 15;
        row.u[k] = low | ((block[16 + k % 32] >> (k / 32)) & 1) << 4;
    }
}

/// ql[128], qh[64], scales[16] (signed), d. In each half: 32 elements from the low nibbles of 32 bytes of ql, 32 from
/// the next 32 bytes, then 64 from the high nibbles of the same; bits 4 and 5 in two bits of qh each.
fn q6_k(block: &[u8], row: &mut RowStep) {
    row.scale[0] = half_at(block, 208);
    for s in 0..16 {
        row.sub_scale[s] = i32::from(block[192 + s] as i8);
    }
    for k in 0..256 {
        let (half, quarter, l) = (k / 128, k % 128 / 32, k % 32);
        let low = (block[half * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4)) & 15;
        row.u[k] = low | ((block[128 + half * 32 + l] >> (quarter * 2)) & 3) << 4;
    }
}

/// d, scales_h (2 bits × 8), scales_l (4 bits × 8), qs[128]: each 16 bytes are a sub-block, low nibbles first.
fn iq4_xs(block: &[u8], row: &mut RowStep) {
    row.scale[0] = half_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for s in 0..8 {
        let low = (block[4 + s / 2] >> (s % 2 * 4)) & 15;
        let scale = u16::from(low) | ((high >> (2 * s)) & 3) << 4;
        row.sub_scale[s] = i32::from(scale) - 32;
        nibbles(&block[8 + 16 * s..], &mut row.u[32 * s..][..32]);
    }
    row.u.iter_mut().for_each(|x| *x = IQ4_LEVELS[usize::from(*x)]);
}

/// Unpacks one step of up to 16 rows; rows beyond `rows` become zeros. `bytes` starts at the step's first block of the
/// first row; rows lie `stride_bytes` apart; the step has `elems` elements.
pub fn unpack_panel(
    format: Format,
    bytes: &[u8],
    stride_bytes: usize,
    rows: usize,
    elems: usize,
    panel: &mut Panel,
) {
    let step_bytes = elems / format.block_elems() * format.block_bytes();
    let mut row = RowStep::zeroed();
    if rows < PANEL_ROWS {
        panel.q.fill(0);
        panel.scale.fill(Lanes([0.0; PANEL_ROWS]));
        panel.min.fill(Lanes([0.0; PANEL_ROWS]));
        panel.sub_scale.fill(IntLanes([0; PANEL_ROWS]));
        panel.sub_min.fill(IntLanes([0; PANEL_ROWS]));
    }
    for r in 0..rows {
        unpack_row(format, &bytes[r * stride_bytes..][..step_bytes], &mut row);
        for (k, u) in row.u[..elems].chunks_exact(4).enumerate() {
            panel.q[(k * PANEL_ROWS + r) * 4..][..4].copy_from_slice(u);
        }
        for b in 0..MAX_BLOCKS {
            (panel.scale[b].0[r], panel.min[b].0[r]) = (row.scale[b], row.min[b]);
        }
        for s in 0..MAX_SUBS {
            (panel.sub_scale[s].0[r], panel.sub_min[s].0[r]) = (row.sub_scale[s], row.sub_min[s]);
        }
    }
}

/// Turns an integer panel into its f32 values.
#[inline(always)]
pub fn widen_panel(layout: PanelLayout, elems: usize, from: &Panel, to: &mut PanelF32) {
    let zero = match layout.zero {
        Zero::Shift(shift) => (1u32 << shift) as f32,
        Zero::Min => 0.0,
    };
    for (k4, q) in from.q[..elems * PANEL_ROWS].chunks_exact(4 * PANEL_ROWS).enumerate() {
        let block = if layout.super_block { 0 } else { k4 / 8 };
        let (mut scale, mut min) = (from.scale[block].0, from.min[block].0);
        if layout.super_block {
            let sub = k4 * 4 / layout.sub_elems;
            for r in 0..PANEL_ROWS {
                scale[r] *= from.sub_scale[sub].0[r] as f32;
                min[r] *= from.sub_min[sub].0[r] as f32;
            }
        }
        for j in 0..4 {
            let out = &mut to.w[k4 * 4 + j].0;
            for r in 0..PANEL_ROWS {
                let min = if layout.zero == Zero::Min { min[r] } else { 0.0 };
                out[r] = scale[r] * (f32::from(q[4 * r + j]) - zero) - min;
            }
        }
    }
}

/// As [`unpack_panel`], for F32, F16 and BF16.
pub fn unpack_floats(
    format: Format,
    bytes: &[u8],
    stride_bytes: usize,
    rows: usize,
    elems: usize,
    panel: &mut PanelF32,
) {
    for r in 0..PANEL_ROWS {
        for k in 0..elems {
            let value = |width: usize| &bytes[r * stride_bytes + k * width..][..width];
            panel.w[k].0[r] = match format {
                _ if r >= rows => 0.0,
                Format::F16 => f16::from_le_bytes([value(2)[0], value(2)[1]]).to_f32(),
                Format::Bf16 => bf16::from_le_bytes([value(2)[0], value(2)[1]]).to_f32(),
                _ => f32::from_le_bytes([value(4)[0], value(4)[1], value(4)[2], value(4)[3]]),
            };
        }
    }
}
