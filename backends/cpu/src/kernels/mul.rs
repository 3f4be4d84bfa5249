//! The portable multiplication of a panel with a tile: it defines what the SIMD versions compute, bit for bit.
//!
//! Where one scale d of the weights meets one scale a of the activations, sums are exact integers:
//! I = Σ_sub sub_scale · Σ (u − zero)·q and J = Σ_sub sub_min · (−Σq). These runs of 256 elements, 32 or (NVFP4) 16 are summed first to
//! last in f32: sum ← fma(min·a, J, sum) where there are minima, then sum ← fma(d·a, I, sum).

use super::layout::{Lanes, PANEL_ROWS, Panel, PanelLayout, TileStep, Zero};

/// Panel × tile for 8-bit activations. `out` has one entry a token.
#[inline(always)]
pub fn mul_q8(layout: PanelLayout, panel: &Panel, subs: usize, tile: TileStep<'_>, out: &mut [Lanes]) {
    let tokens = out.len();
    let (sub_elems, groups) = (layout.sub_elems, layout.sub_elems / 4);
    let run_elems = layout.scale_elems.min(if tile.scale_per_step { 256 } else { 32 });
    let run_subs = run_elems / sub_elems;
    for first in (0..subs).step_by(run_subs) {
        let block = if layout.super_block { 0 } else { first * sub_elems / layout.scale_elems };
        let scale_at = if tile.scale_per_step { 0 } else { first * sub_elems / 32 };
        for (t, out) in out.iter_mut().enumerate() {
            let (mut products, mut minima) = ([0i32; PANEL_ROWS], [0i32; PANEL_ROWS]);
            for s in first..(first + run_subs).min(subs) {
                let neg_sum = match sub_elems {
                    16 => tile.neg_sums16[s * tokens + t],
                    _ => tile.neg_sums32[s * tokens + t],
                };
                let zero = if let Zero::Shift(shift) = layout.zero { neg_sum << shift } else { 0 };
                let mut ints = [zero; PANEL_ROWS];
                for k4 in s * groups..(s + 1) * groups {
                    let q = &tile.q[(k4 * tokens + t) * 4..][..4];
                    let u = &panel.q[k4 * PANEL_ROWS * 4..][..PANEL_ROWS * 4];
                    for r in 0..PANEL_ROWS {
                        for j in 0..4 {
                            ints[r] += i32::from(u[4 * r + j]) * i32::from(q[j]);
                        }
                    }
                }
                for r in 0..PANEL_ROWS {
                    let (by, min) = match layout.super_block {
                        true => (panel.sub_scale[s].0[r], panel.sub_min[s].0[r]),
                        false => (1, 1),
                    };
                    products[r] += by * ints[r];
                    minima[r] += min * neg_sum;
                }
            }
            let a = tile.scale[scale_at * tokens + t];
            for r in 0..PANEL_ROWS {
                if layout.zero == Zero::Min {
                    out.0[r] = (panel.min[block].0[r] * a).mul_add(minima[r] as f32, out.0[r]);
                }
                out.0[r] = (panel.scale[block].0[r] * a).mul_add(products[r] as f32, out.0[r]);
            }
        }
    }
}
