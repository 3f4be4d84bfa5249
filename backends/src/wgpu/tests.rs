//! The op cases under every set of optional features, split tensors, and what must fail in which words.
//!
//! They need an adapter; Mesa's software Vulkan is enough. A machine without any skips them loudly.

use super::{Features, Wgpu, WgpuOptions};
use crate::cases::{self, OPS};
use crate::executable::{Activations, Backend, CompileOptions, KvType};
use crate::reference::Reference;
use moe_run_graph::quant::Format;

/// Both sides compute from the same rounded activations and cache; what is left is the order of f32 sums and the last
/// bits of exp, which a softmax over hundreds of positions adds up.
const TOLERANCE: f64 = 2e-5;

fn plain() -> WgpuOptions {
    WgpuOptions { allowed: Features::default(), timestamps: false, ..WgpuOptions::default() }
}

fn has_adapter() -> bool {
    let found = Wgpu::default().devices().is_ok();
    if !found {
        eprintln!("SKIPPED: no wgpu adapter; install mesa-vulkan-drivers");
    }
    found
}

/// Runs a case on the backend and the reference; gives what was used.
fn check(backend: &Wgpu, op: &str, format: Format, seed: u64, options: &CompileOptions) {
    let case = cases::case(op, format, seed).unwrap().unwrap();
    let found = cases::run(&case, backend, options).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let wanted = cases::run(&case, &Reference, options).unwrap();
    assert_eq!(found.len(), wanted.len(), "{}", case.name);
    for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        let distance = cases::distance(found, wanted);
        assert!(
            distance <= TOLERANCE,
            "{} with {:?}, kv {}: result {i}: relative L2 {distance:.3e}",
            case.name,
            backend.options,
            options.kv_type
        );
    }
}

fn options(activations: Activations, kv_type: KvType) -> CompileOptions {
    CompileOptions { activations: Some(activations), kv_type, ..CompileOptions::default() }
}

/// All off, and each by itself: whatever an adapter lacks, the results are the same.
#[test]
fn every_op_is_right_under_every_feature() {
    if !has_adapter() {
        return;
    }
    let sets = [
        Features::default(),
        Features { subgroups: true, ..Features::default() },
        Features { f16: true, ..Features::default() },
        Features { dot4: true, ..Features::default() },
    ];
    for allowed in sets {
        let backend = Wgpu { options: WgpuOptions { allowed, ..plain() } };
        for op in OPS {
            for seed in 0..3 {
                let format = Format::ALL[(seed as usize * 7 + op.len()) % 16];
                let format = if cases::takes_formats(op) { format } else { Format::F32 };
                let kv_type = KvType::ALL[seed as usize % KvType::ALL.len()];
                let kv_type = if op.starts_with("attention") { kv_type } else { KvType::F32 };
                check(&backend, op, format, seed, &options(Activations::Q8, kv_type));
            }
        }
    }
}
