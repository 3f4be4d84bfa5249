//! The portable unpacking of every format: it defines what a panel holds, and the SIMD versions must give the same
//! bytes and the same scales, bit for bit.
//!
//! Input: one row's blocks, taken apart by `Format::for_each_block`. Output: a [`RowStep`], which `(scale · sub_scale) · (u − zero) − (min · sub_min)` turns into
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
    /// A scale for each block, or part of one, under a floating-point scale.
    pub scale: [f32; MAX_BLOCKS],
    /// A minimum for each of them; 0 where the format has none.
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

/// Unpacks the blocks of a quantized row that `bytes` holds, at most 256 elements.
pub fn unpack_row(format: Format, bytes: &[u8], row: &mut RowStep) {
    let (elems, zero) = (format.scale_elems(), PanelLayout::of(format).map(|layout| layout.zero));
    let zero = if let Some(Zero::Shift(shift)) = zero { 1 << shift } else { 0 };
    let mut i = 0;
    format.for_each_block(bytes, |block| {
        (row.scale[i], row.min[i]) = (block.scale, block.min);
        for (u, q) in row.u[i * elems..][..elems].iter_mut().zip(&block.q) {
            *u = (q + zero) as u8; // 0..=255, as the layout's zero is made for the format
        }
        if elems == STEP_ELEMS {
            row.sub_scale = block.sub_scales.map(i32::from);
            row.sub_min = block.sub_mins.map(i32::from);
        }
        i += 1;
    });
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
        let block = if layout.super_block { 0 } else { k4 * 4 / layout.scale_elems };
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
