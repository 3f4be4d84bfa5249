//! Sampling on the device: the best candidates of a row of logits.

use crate::wgpu::emit::{Dispatch, Extent, Grid, NONE, StateBinding};
use crate::wgpu::shader::{Features, Variant};

const LANES: u32 = 256;
/// Logits that one workgroup reduces.
const CHUNK: usize = 1024;

/// Words of scratch for the best `count` of `elements` logits: chunks' candidates, their NaN counts, the result.
pub(in crate::wgpu) fn scratch_words(elements: usize, count: usize) -> usize {
    let chunks = elements.div_ceil(CHUNK);
    chunks * count * 2 + chunks + count * 2 + 1
}

/// Where the result lies in the scratch: `count` pairs (id, bits of the logit), then the number of NaN logits.
pub(in crate::wgpu) fn result_at(elements: usize, count: usize) -> usize {
    let chunks = elements.div_ceil(CHUNK);
    chunks * count * 2 + chunks
}

/// Logits of a row that the second launch's one workgroup can still merge.
pub(in crate::wgpu) const MAX_ELEMENTS: usize = CHUNK * CHUNK;

/// The two dispatches that choose the best `count` of the logits at `x`; the best id also goes to `next_token`.
pub(in crate::wgpu) fn dispatches(
    features: Features,
    x: u32,
    elements: usize,
    count: usize,
    scratch: u32,
    next_token: Option<u32>,
) -> [Dispatch; 2] {
    let chunks = elements.div_ceil(CHUNK);
    let nan_counts = scratch + (chunks * count * 2) as u32;
    let dispatch = |first: bool| Dispatch {
        variant: Variant::new("top_candidates", features, &[("LANES", LANES), ("KEYS", CHUNK as u32)]),
        params: vec![
            ("x", if first { x } else { scratch }.into()),
            ("elements", (elements as u32).into()),
            ("y", if first { scratch } else { scratch + result_at(elements, count) as u32 }.into()),
            ("count", (count as u32).into()),
            ("first", u32::from(first).into()),
            ("next_token", next_token.unwrap_or(NONE).into()),
            ("nan_counts", nan_counts.into()),
            ("chunks", (chunks as u32).into()),
        ],
        weights: Vec::new(),
        state: StateBinding::None,
        grid: Grid::new(
            Extent::Fixed(if first { chunks as u32 } else { 1 }),
            Extent::Fixed(1),
            Extent::Fixed(1),
        ),
        when_split: false,
    };
    [dispatch(true), dispatch(false)]
}
