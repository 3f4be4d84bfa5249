//! The portable multiplication of a panel with a tile: it defines what the SIMD versions compute.
//!
//! `out[token][row] += Σ_sub (scale · (Σ u·q − zero·Σq) − min · Σq) · activation scale`. The sums over a sub-block are
//! exact integers; only the order of the f32 sums over sub-blocks is free.

use super::layout::{Lanes, PANEL_ROWS, Panel, PanelLayout, TileStep, Zero};

/// Panel × tile for 8-bit activations. `out` has one entry a token.
pub fn mul_q8(layout: PanelLayout, panel: &Panel, subs: usize, tile: TileStep<'_>, out: &mut [Lanes]) {
    let tokens = out.len();
    let groups = layout.sub_elems / 4;
    for (t, out) in out.iter_mut().enumerate() {
        for r in 0..PANEL_ROWS {
            let mut sum = 0.0f32;
            for s in 0..subs {
                let neg_sum = match layout.sub_elems {
                    16 => tile.neg_sums16[s * tokens + t],
                    _ => tile.neg_sums32[s * tokens + t],
                };
                let mut int = if let Zero::Shift(shift) = layout.zero { neg_sum << shift } else { 0 };
                for k4 in s * groups..(s + 1) * groups {
                    let u = &panel.q[(k4 * PANEL_ROWS + r) * 4..][..4];
                    let q = &tile.q[(k4 * tokens + t) * 4..][..4];
                    int += (0..4).map(|j| i32::from(u[j]) * i32::from(q[j])).sum::<i32>();
                }
                let mut value = int as f32 * panel.scale[s].0[r];
                if layout.zero == Zero::Min {
                    value += neg_sum as f32 * panel.min[s].0[r];
                }
                let scale = if tile.scale_per_step {
                    1.0
                } else {
                    tile.scale[s * layout.sub_elems / 32 * tokens + t]
                };
                sum += value * scale;
            }
            out.0[r] += if tile.scale_per_step { sum * tile.scale[t] } else { sum };
        }
    }
}
