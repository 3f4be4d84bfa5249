//! (a, b) → (a·cos − b·sin, b·cos + a·sin) for each pair of a head.

use moe_run_graph::ir::{RopePairing, RopeSpec};

/// `x` [T, heads · d] in place; `positions` [T].
pub(super) fn rope(x: &mut [f32], positions: &[u32], heads: usize, spec: &RopeSpec, pairing: RopePairing) {
    let mut angles = vec![0.0; spec.dims];
    let row_elems = x.len() / positions.len();
    for (row, position) in x.chunks_exact_mut(row_elems).zip(positions) {
        spec.fill_row(*position, &mut angles);
        for head in row.chunks_exact_mut(row_elems / heads) {
            for (i, cos_sin) in angles.chunks_exact(2).enumerate() {
                let (first, second) = match pairing {
                    RopePairing::Half => (i, i + spec.dims / 2),
                    RopePairing::Interleaved => (2 * i, 2 * i + 1),
                };
                let (a, b) = (head[first], head[second]);
                head[first] = a * cos_sin[0] - b * cos_sin[1];
                head[second] = b * cos_sin[0] + a * cos_sin[1];
            }
        }
    }
}
