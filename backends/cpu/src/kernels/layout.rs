//! The two shapes that every matmul kernel works on: a *panel* of weights and a *tile* of activations.
//!
//! A panel is 16 output rows × up to 256 input elements (a *step*), unpacked from whatever the file holds into bytes:
//! `w[row][k] = (scale[row] · sub_scale[sub][row]) · (u[row][k] − zero) − (min[row] · sub_min[sub][row])`, with u unsigned,
//! sub-blocks of 16 or 32 elements under a small integer each, and either a constant `zero` (a power of two) or minima.
//! Formats without super-blocks have a `scale` and a `min` for each 32 elements (NVFP4 for each 16), and no integers below. The bytes lie as a
//! dot-product instruction wants them: four elements of k of row 0, of row 1, … of row 15, then the next four elements.
//! A tile is up to 8 tokens, their 8-bit elements interleaved the same way: four of token 0, four of token 1, …
//! One unpacked panel meets every tile of the batch, so unpacking costs little in a prompt; with one token the tile is
//! the plain row, and the same kernels make the decode step.

use moe_run_graph::quant::Format;

/// Output rows of a panel.
pub const PANEL_ROWS: usize = 16;
/// Input elements of a step: the most that a panel holds.
pub const STEP_ELEMS: usize = 256;
/// The most tokens in a tile.
pub const TILE_TOKENS: usize = 8;
/// The shortest sub-block.
pub const MIN_SUB_ELEMS: usize = 16;
/// Sub-blocks in a step, at most.
pub const MAX_SUBS: usize = STEP_ELEMS / MIN_SUB_ELEMS;

/// Blocks under a floating-point scale in a step, at most.
pub const MAX_BLOCKS: usize = STEP_ELEMS / MIN_SUB_ELEMS;

/// One i32 for each row of a panel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct IntLanes(pub [i32; PANEL_ROWS]);

/// One f32 for each row of a panel.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Lanes(pub [f32; PANEL_ROWS]);

/// One f64 for each row of a panel.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct WideLanes(pub [f64; PANEL_ROWS]);

/// The floats of some entries, one after the other.
pub fn flat(lanes: &[Lanes]) -> &[f32] {
    // SAFETY: `Lanes` is 16 floats, 64 bytes without padding.
    unsafe { std::slice::from_raw_parts(lanes.as_ptr().cast(), lanes.len() * PANEL_ROWS) }
}

/// As [`flat`], to write.
pub fn flat_mut(lanes: &mut [Lanes]) -> &mut [f32] {
    // SAFETY: as in `flat`.
    unsafe { std::slice::from_raw_parts_mut(lanes.as_mut_ptr().cast(), lanes.len() * PANEL_ROWS) }
}

/// As [`flat`], of wide entries.
pub fn wide_flat(lanes: &[WideLanes]) -> &[f64] {
    // SAFETY: `WideLanes` is 16 floats, 128 bytes without padding.
    unsafe { std::slice::from_raw_parts(lanes.as_ptr().cast(), lanes.len() * PANEL_ROWS) }
}

/// As [`wide_flat`], to write.
pub fn wide_flat_mut(lanes: &mut [WideLanes]) -> &mut [f64] {
    // SAFETY: as in `wide_flat`.
    unsafe { std::slice::from_raw_parts_mut(lanes.as_mut_ptr().cast(), lanes.len() * PANEL_ROWS) }
}

/// 16 rows × up to 256 elements of a quantized matrix, as bytes under scales.
#[repr(C, align(64))]
pub struct Panel {
    /// `[k / 4][row][4]`.
    pub q: [u8; PANEL_ROWS * STEP_ELEMS],
    /// `[elements / scale_elems][row]`; of a super-block only the first.
    pub scale: [Lanes; MAX_BLOCKS],
    /// As `scale`. Read only for formats with minima.
    pub min: [Lanes; MAX_BLOCKS],
    /// `[sub][row]`; read only for super-blocks.
    pub sub_scale: [IntLanes; MAX_SUBS],
    /// `[sub][row]`; read only for super-blocks with minima.
    pub sub_min: [IntLanes; MAX_SUBS],
}

/// 16 rows × up to 256 elements of any matrix, as f32: `[k][row]`.
#[repr(C, align(64))]
pub struct PanelF32 {
    /// The values.
    pub w: [Lanes; STEP_ELEMS],
}

impl Panel {
    /// A panel of zeros.
    pub fn zeroed() -> Box<Panel> {
        const ZERO: Lanes = Lanes([0.0; PANEL_ROWS]);
        const NONE: IntLanes = IntLanes([0; PANEL_ROWS]);
        Box::new(Panel {
            q: [0; PANEL_ROWS * STEP_ELEMS],
            scale: [ZERO; MAX_BLOCKS],
            min: [ZERO; MAX_BLOCKS],
            sub_scale: [NONE; MAX_SUBS],
            sub_min: [NONE; MAX_SUBS],
        })
    }
}

impl PanelF32 {
    /// A panel of zeros.
    pub fn zeroed() -> Box<PanelF32> {
        Box::new(PanelF32 { w: [Lanes([0.0; PANEL_ROWS]); STEP_ELEMS] })
    }
}

/// How a quantized format's values follow from a panel's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zero {
    /// `w = scale · (u − 2^shift)`.
    Shift(u32),
    /// `w = scale · u − min`.
    Min,
}

/// A quantized format as the panels see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PanelLayout {
    /// Elements under one scale: 16 or 32.
    pub sub_elems: usize,
    /// Elements under one floating-point scale: 16, 32 or 256.
    pub scale_elems: usize,
    /// A block has 256 elements, whose scales are integers times the block's.
    pub super_block: bool,
    /// What is subtracted.
    pub zero: Zero,
}

impl PanelLayout {
    /// The layout of a quantized format; `None` for F32, F16 and BF16, which have no integers.
    pub fn of(format: Format) -> Option<PanelLayout> {
        let (sub_elems, zero) = match format {
            Format::F32 | Format::F16 | Format::Bf16 => return None,
            Format::Q4_0 => (32, Zero::Shift(3)),
            Format::Q5_0 | Format::Mxfp4 => (32, Zero::Shift(4)),
            Format::Nvfp4 => (16, Zero::Shift(4)),
            Format::Q8_0
            | Format::Iq4Nl
            | Format::Iq4Xs
            | Format::Iq2Xxs
            | Format::Iq3Xxs
            | Format::Iq3S
            | Format::Iq1S
            | Format::Tq1_0
            | Format::Tq2_0
            | Format::Q1_0
            | Format::Q2_0 => (32, Zero::Shift(7)),
            Format::Iq2Xs | Format::Iq2S | Format::Iq1M => (16, Zero::Shift(7)),
            Format::Q3K => (16, Zero::Shift(2)),
            Format::Q6K => (16, Zero::Shift(5)),
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => (32, Zero::Min),
            Format::Q2K => (16, Zero::Min),
        };
        let (scale_elems, super_block) = (format.scale_elems(), format.is_super_block());
        Some(PanelLayout { sub_elems, scale_elems, super_block, zero })
    }
}

/// One step of a tile of 8-bit activations, as the kernels read it. With `n` tokens: `q` is `[k / 4][n][4]`;
/// `neg_sums16` and `neg_sums32` hold −Σq over 16 and 32 elements, `[k / 16][n]` and `[k / 32][n]`.
#[derive(Clone, Copy)]
pub struct TileStep<'a> {
    /// Quantized elements.
    pub q: &'a [i8],
    /// −Σq of 16 consecutive elements.
    pub neg_sums16: &'a [i32],
    /// −Σq of 32 consecutive elements.
    pub neg_sums32: &'a [i32],
    /// What the elements are multiplied with: `[k / 32][n]`, or `[n]` with `scale_per_step`.
    pub scale: &'a [f32],
    /// One scale covers the step (256 elements).
    pub scale_per_step: bool,
}
