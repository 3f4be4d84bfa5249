//! Random shapes of every op on wgpu against the reference: 300 an op with `--full`, 15 otherwise. Each shape runs with every
//! optional feature of the adapter, and again without one of them or without any, in turn.

use moe_run_backends::Backend;
use moe_run_backends::wgpu::{Features, Wgpu, WgpuOptions};
use moe_run_tests::fixtures;
use moe_run_tests::random_shapes::{self, Variant};

/// All that the adapter has, then without one each, then the plain path.
fn feature_sets() -> [WgpuOptions; 5] {
    let all = WgpuOptions { timestamps: false, ..WgpuOptions::default() };
    let with = |allowed: Features| WgpuOptions { allowed, ..all };
    [
        all,
        with(Features { subgroups: false, ..all.allowed }),
        with(Features { f16: false, ..all.allowed }),
        with(Features { dot4: false, ..all.allowed }),
        with(Features::default()),
    ]
}

#[test]
fn random_shapes_of_every_op() {
    if Wgpu::default().devices().is_err() {
        eprintln!("SKIPPED: no wgpu adapter; install mesa-vulkan-drivers");
        return;
    }
    // Not shared: shapes run on several threads.
    let sets = feature_sets().map(|options| (format!("wgpu with {}", options.allowed), Wgpu { options }));
    let variant = |i: usize| -> Variant<'_> { (sets[i].0.clone(), &sets[i].1) };
    let shapes = if fixtures::full() { random_shapes::ALL } else { 15 };
    random_shapes::every_op(shapes, &|i| [0, 1 + i % 4].map(variant).into());
}
