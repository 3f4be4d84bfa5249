//! Panel × tile with `sdot`: a vector holds four rows × four elements, so four of them are a panel's 16 rows; up to 4
//! tokens at a time keep 16 sums in registers. Where the unsigned bytes span the whole range, 128 is taken off.

use super::super::layout::{Lanes, PANEL_ROWS, Panel, PanelLayout, TileStep, Zero};
use super::dot4;
use std::arch::aarch64::*;

/// Vectors of four rows in a panel.
const QUARTERS: usize = PANEL_ROWS / 4;

/// Panel × tile for any number of tokens.
///
/// # Safety
/// The CPU has NEON with dot products. `tile` holds `subs` sub-blocks of `out.len()` tokens with their sums and scales, one
/// for 256 elements where the layout has super-blocks and one for 32 where it has not.
#[target_feature(enable = "neon,dotprod")]
pub unsafe fn mul(layout: PanelLayout, panel: &Panel, subs: usize, tile: TileStep<'_>, out: &mut [Lanes]) {
    let mut t = 0;
    while t < out.len() {
        // SAFETY: tokens t.. of the tile, as many as the arm says.
        unsafe {
            match out.len() - t {
                1 => part::<1>(layout, panel, subs, tile, t, out),
                2 => part::<2>(layout, panel, subs, tile, t, out),
                3 => part::<3>(layout, panel, subs, tile, t, out),
                _ => part::<4>(layout, panel, subs, tile, t, out),
            }
        }
        t += 4;
    }
}

/// 16 rows × `T` tokens from token `first` on.
///
/// # Safety
/// As [`mul`], and the tile has tokens `first..first + T`.
#[target_feature(enable = "neon,dotprod")]
unsafe fn part<const T: usize>(
    layout: PanelLayout,
    panel: &Panel,
    subs: usize,
    tile: TileStep<'_>,
    first: usize,
    out: &mut [Lanes],
) {
    let tokens = out.len();
    let groups = layout.sub_elems / 4;
    let sums = if layout.sub_elems == 16 { tile.neg_sums16 } else { tile.neg_sums32 };
    let centred = layout.zero == Zero::Shift(7);
    let mut total = [[vdupq_n_s32(0); QUARTERS]; T];
    let mut minima = [[vdupq_n_s32(0); QUARTERS]; T];
    // SAFETY: offsets stay inside the panel, the tile and `out`, whose sizes the caller vouches for.
    unsafe {
        // Adds `ints` · (the panel's scale · the token's number `at`).
        let scaled =
            |float: float32x4_t, by: &Lanes, at: usize, t: usize, quarter: usize, ints: int32x4_t| {
                let a = *tile.scale.get_unchecked(at * tokens + first + t);
                let by = vmulq_n_f32(vld1q_f32(by.0.as_ptr().add(4 * quarter)), a);
                vfmaq_f32(float, by, vcvtq_f32_s32(ints))
            };
        for s in 0..subs {
            let sum = |t: usize| *sums.get_unchecked(s * tokens + first + t);
            let mut int = [[vdupq_n_s32(0); QUARTERS]; T];
            for k4 in s * groups..(s + 1) * groups {
                let at = panel.q.as_ptr().add(k4 * 4 * PANEL_ROWS);
                let q = tile.q.as_ptr().add((k4 * tokens + first) * 4).cast::<i32>();
                for quarter in 0..QUARTERS {
                    let u = vld1q_u8(at.add(16 * quarter));
                    let u = if centred { veorq_u8(u, vdupq_n_u8(128)) } else { u };
                    for (t, int) in int.iter_mut().enumerate() {
                        let q = vreinterpretq_s8_s32(vdupq_n_s32(q.add(t).read_unaligned()));
                        int[quarter] = dot4(int[quarter], vreinterpretq_s8_u8(u), q);
                    }
                }
            }
            for t in 0..T {
                let to = out.get_unchecked_mut(first + t).0.as_mut_ptr();
                for quarter in 0..QUARTERS {
                    let mut x = int[t][quarter];
                    if let (Zero::Shift(shift), false) = (layout.zero, centred) {
                        x = vaddq_s32(x, vdupq_n_s32(sum(t) << shift));
                    }
                    if layout.super_block {
                        let by = vld1q_s32(panel.sub_scale[s].0.as_ptr().add(4 * quarter));
                        total[t][quarter] = vmlaq_s32(total[t][quarter], x, by);
                        if layout.zero == Zero::Min {
                            let min = vld1q_s32(panel.sub_min[s].0.as_ptr().add(4 * quarter));
                            minima[t][quarter] = vmlaq_n_s32(minima[t][quarter], min, sum(t));
                        }
                        continue;
                    }
                    let (to, at) = (to.add(4 * quarter), s * layout.sub_elems / 32);
                    let mut float = vld1q_f32(to);
                    if layout.zero == Zero::Min {
                        float = scaled(float, &panel.min[s], at, t, quarter, vdupq_n_s32(sum(t)));
                    }
                    vst1q_f32(to, scaled(float, &panel.scale[s], at, t, quarter, x));
                }
            }
        }
        if !layout.super_block {
            return;
        }
        for t in 0..T {
            for quarter in 0..QUARTERS {
                let to = out.get_unchecked_mut(first + t).0.as_mut_ptr().add(4 * quarter);
                let mut float = vld1q_f32(to);
                if layout.zero == Zero::Min {
                    float = scaled(float, &panel.min[0], 0, t, quarter, minima[t][quarter]);
                }
                vst1q_f32(to, scaled(float, &panel.scale[0], 0, t, quarter, total[t][quarter]));
            }
        }
    }
}
