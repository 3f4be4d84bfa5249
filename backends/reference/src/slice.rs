//! Some elements of each head.

use std::ops::Range;

/// Of every `width` elements of `x` those of `part` → `out`.
pub(super) fn slice(x: &[f32], width: usize, part: Range<usize>, out: &mut [f32]) {
    for (head, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(part.len())) {
        out.copy_from_slice(&head[part.clone()]);
    }
}
