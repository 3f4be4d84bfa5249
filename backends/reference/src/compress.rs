//! What windows of positions come to: of each channel a mean of a, weighed by a softmax of b.

use moe_run_graph::ir::CompressAttrs;
use moe_run_runtime::executable::StepRun;
use moe_run_runtime::exp::{exp_shifted, shift_of};

/// `a`, `b` [T, c·d] of one run of rows, `bias` [ratio, c·d], `state` [d, 2 · slots] of its sequence → `out` [T, d].
pub(super) fn compress(
    a: &[f32],
    b: &[f32],
    run: &StepRun,
    attrs: &CompressAttrs,
    bias: &[f32],
    state: &mut [f32],
    out: &mut [f32],
) {
    let (parts, slots) = (attrs.parts(), attrs.slots());
    let d = out.len() / run.rows.len();
    let rows = a.chunks_exact(parts * d).zip(b.chunks_exact(parts * d)).zip(out.chunks_exact_mut(d));
    for (position, ((a, b), out)) in (run.first_position..).zip(rows) {
        let bias = &bias[position % attrs.ratio * parts * d..][..parts * d];
        for (channel, out) in out.iter_mut().enumerate() {
            let (brought, weights) = state[channel * 2 * slots..][..2 * slots].split_at_mut(slots);
            for part in 0..parts {
                let (slot, i) = (attrs.slot(part, position), part * d + channel);
                brought[slot] = a[i];
                weights[slot] = b[i] + bias[i];
            }
            *out = match attrs.completes(position) {
                true => mean(brought, weights, attrs.window(position)),
                false => 0.0,
            };
        }
    }
}

/// Σ softmax(weights) · brought, over some places.
fn mean(brought: &[f32], weights: &[f32], places: impl Iterator<Item = usize> + Clone) -> f32 {
    let shift = shift_of(places.clone().map(|p| weights[p]).fold(f32::NEG_INFINITY, f32::max));
    let (mut sum, mut total) = (0.0f32, 0.0f32);
    for p in places {
        let share = exp_shifted(weights[p], shift);
        sum = share.mul_add(brought[p], sum);
        total += share;
    }
    sum / total
}
