//! Sampling on the device: the best candidates of a row of logits.

use crate::emit::{Dispatch, Extent, Grid, NONE, StateBinding};
use crate::shader::{Features, Variant};
use moe_run_runtime::choice::MAX_CANDIDATES;

const LANES: u32 = 256;
/// Logits that one workgroup reduces.
const CHUNK: usize = 1024;

/// Words of the result for `count` candidates: the first NaN's id or [`NONE`], then pairs (id or [`NONE`], bits of the
/// logit), best first. It begins the scratch.
pub(crate) fn result_words(count: usize) -> usize {
    1 + 2 * count
}

/// Words of scratch for choosing among `elements` logits: the result, each chunk's first NaN, each chunk's candidates.
pub(crate) fn scratch_words(elements: usize) -> usize {
    result_words(MAX_CANDIDATES) + elements.div_ceil(CHUNK) * (1 + 2 * MAX_CANDIDATES)
}

/// Logits of a row that the second launch's one workgroup can still merge.
pub(crate) const MAX_ELEMENTS: usize = CHUNK * CHUNK;

/// The parameters that change from step to step, first in both dispatches' parameters: where the logits lie, and how many
/// candidates are wanted.
pub(crate) type Wanted = [u32; 2];

/// The two dispatches that choose the best of a row of `elements` logits; the best id also goes to `next_token`.
pub(crate) fn dispatches(
    features: Features,
    elements: usize,
    scratch: u32,
    next_token: Option<u32>,
) -> [Dispatch; 2] {
    let chunks = elements.div_ceil(CHUNK) as u32;
    let chunk_nans = scratch + result_words(MAX_CANDIDATES) as u32;
    let dispatch = |first: bool| Dispatch {
        variant: Variant::new("top_candidates", features, &[("LANES", LANES), ("KEYS", CHUNK as u32)]),
        params: vec![
            ("x", NONE.into()),
            ("count", 1.into()),
            ("elements", (elements as u32).into()),
            ("first", u32::from(first).into()),
            ("y", scratch.into()),
            ("chunk_nans", chunk_nans.into()),
            ("chunk_best", (chunk_nans + chunks).into()),
            ("chunks", chunks.into()),
            ("next_token", next_token.unwrap_or(NONE).into()),
        ],
        weights: Vec::new(),
        state: StateBinding::None,
        grid: Grid::new(Extent::Fixed(if first { chunks } else { 1 }), Extent::Fixed(1), Extent::Fixed(1)),
        when_split: false,
    };
    [dispatch(true), dispatch(false)]
}
