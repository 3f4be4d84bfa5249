//! Rows times a factor of their position.

use moe_run_graph::ir::PositionScaleAttrs;

/// `x` and `out` [T, n], `positions` [T].
pub(super) fn position_scale(x: &[f32], positions: &[u32], attrs: &PositionScaleAttrs, out: &mut [f32]) {
    let width = (x.len() / positions.len().max(1)).max(1);
    let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
    for ((x, out), position) in rows.zip(positions) {
        let factor = attrs.factor(*position);
        out.iter_mut().zip(x).for_each(|(out, x)| *out = x * factor);
    }
}
