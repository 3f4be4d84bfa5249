//! Single CPU kernels on data that stays in the cache: `cargo bench -p moe-run-benches --bench kernels [FILTER]`.
//!
//! What memory adds is in `ops`, whose weights no cache holds.

use moe_run_backends::cpu::kernels::{
    Kernels, Lanes, PANEL_ROWS, Panel, PanelF32, PanelLayout, STEP_ELEMS, TileStep,
};
use moe_run_graph::quant::Format;
use std::hint::black_box;
use std::time::Instant;

/// Steps of a row that one token is multiplied with.
const ROW_STEPS: usize = 8;

/// Seconds a call of `f`, the best of several runs of about 20 ms.
fn seconds(mut f: impl FnMut()) -> f64 {
    let mut calls = 1u32;
    let mut best = f64::INFINITY;
    for _ in 0..7 {
        let start = Instant::now();
        (0..calls).for_each(|_| f());
        let each = start.elapsed().as_secs_f64() / f64::from(calls);
        best = best.min(each);
        calls = (0.02 / each).clamp(1.0, 1e7) as u32;
    }
    best
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let kernels = Kernels::detect();
    println!("kernels: {}", kernels.isa().name());
    for format in Format::ALL {
        if !format.name().to_lowercase().contains(&filter.to_lowercase()) {
            continue;
        }
        // 1.0 as f16 in every pair of bytes keeps all scales finite.
        let stride = format.row_bytes(STEP_ELEMS).unwrap_or(0);
        let bytes: Vec<u8> =
            (0..stride * PANEL_ROWS).map(|i| if i % 2 == 0 { (i / 7) as u8 } else { 0x3c }).collect();
        let (mut panel, mut wide) = (Panel::zeroed(), PanelF32::zeroed());
        let unpack = match PanelLayout::of(format) {
            Some(_) => seconds(|| {
                kernels.unpack(format, black_box(&bytes), stride, PANEL_ROWS, STEP_ELEMS, &mut panel);
            }),
            None => seconds(|| {
                let bytes = black_box(&bytes);
                kernels.unpack_f32(format, bytes, stride, PANEL_ROWS, STEP_ELEMS, &mut panel, &mut wide);
            }),
        };
        print!(
            "{:<8} unpack {:6.1} ns {:6.1} GB/s",
            format.name(),
            unpack * 1e9,
            bytes.len() as f64 / unpack / 1e9
        );
        for tokens in [1, 4, 8] {
            let mut out = vec![Lanes([0.0; PANEL_ROWS]); tokens];
            let each = if let Some(layout) = PanelLayout::of(format) {
                let q = vec![3i8; tokens * STEP_ELEMS];
                let sums = vec![-48i32; tokens * STEP_ELEMS / 16];
                let scale = vec![0.01f32; tokens * STEP_ELEMS / 32];
                let tile = TileStep {
                    q: &q,
                    neg_sums16: &sums,
                    neg_sums32: &sums,
                    scale: &scale,
                    scale_per_step: format.is_super_block(),
                };
                let subs = STEP_ELEMS / layout.sub_elems;
                seconds(|| kernels.mul_q8(layout, black_box(&panel), subs, tile, &mut out))
            } else {
                let x = vec![0.5f32; tokens * STEP_ELEMS];
                seconds(|| kernels.mul_f32(black_box(&wide.w), &x, &mut out))
            };
            let macs = (tokens * STEP_ELEMS * PANEL_ROWS) as f64;
            print!("   × {tokens}: {:6.1} ns {:6.1} GMAC/s", each * 1e9, macs / each / 1e9);
        }
        // Rows as long as a model's, all in the first cache.
        let elems = ROW_STEPS * STEP_ELEMS;
        let rows = bytes.repeat(ROW_STEPS);
        let (q, sums) = (vec![3i8; elems], vec![-48i32; elems / 16]);
        let scale = vec![0.01f32; elems / 32];
        let scale_per_step = format.is_super_block();
        let tile = TileStep { q: &q, neg_sums16: &sums, neg_sums32: &sums, scale: &scale, scale_per_step };
        let mut out = [0.0; PANEL_ROWS];
        if format.is_quantized() && kernels.dot_rows(format, &rows, elems, tile, &[], &mut out) {
            let each = seconds(|| {
                kernels.dot_rows(format, black_box(&rows), elems, tile, &[], &mut out);
            });
            print!("   one token {:6.1} ns {:6.1} GB/s", each * 1e9, rows.len() as f64 / each / 1e9);
        }
        println!();
    }
}
