//! A function of each element.

use moe_run_graph::ir::PointwiseFn;
use moe_run_runtime::exp::{clamp, relu_squared, soft_cap};

/// Both of one length.
pub(super) fn pointwise(function: PointwiseFn, x: &[f32], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = match function {
            PointwiseFn::Scale(factor) => factor * x,
            PointwiseFn::SoftCap(cap) => soft_cap(*x, cap),
            PointwiseFn::Clamp(limit) => clamp(*x, limit),
            PointwiseFn::ReluSquared => relu_squared(*x),
        };
    }
}
