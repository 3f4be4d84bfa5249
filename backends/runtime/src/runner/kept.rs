//! A sequence's own states between steps, and what it needs of those that are rings: read, and put back.

use super::{Recorder, wrong};
use crate::error::BackendError;
use crate::executable::{KeptRows, KvType, Ring, SequenceStates, State};
use crate::step::BLOCK_TOKENS;
use moe_run_graph::ir::{Graph, StateDecl};
use std::ops::Range;

/// Slots that follow each other: where some positions of the sequence at `place` lie in a ring.
fn slots(ring: Ring, place: usize, positions: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let blocks = positions.start / BLOCK_TOKENS..positions.end.div_ceil(BLOCK_TOKENS);
    blocks.map(move |block| {
        let first = positions.start.max(block * BLOCK_TOKENS);
        let end = positions.end.min((block + 1) * BLOCK_TOKENS);
        let slot = ring.slot(place, first);
        slot..slot + (end - first)
    })
}

/// The states that a sequence has for itself, with the slots of what it needs of each to go on from so many tokens, and how
/// these are stored.
fn own(
    graph: &Graph,
    rings: &[Option<Ring>],
    kv_type: KvType,
    place: usize,
    len_tokens: usize,
) -> Vec<(StateDecl, KvType, Vec<Range<usize>>)> {
    let of = |state: &StateDecl| match rings.get(state.id.index()).copied().flatten() {
        Some(ring) => Some((state.clone(), kv_type, slots(ring, place, ring.needed(len_tokens)).collect())),
        None if !state.is_per_token() => {
            Some((state.clone(), KvType::F32, std::iter::once(place..place + 1).collect()))
        }
        None => None,
    };
    graph.states.iter().filter_map(of).collect()
}

/// What they hold; nothing of a pool of several sequences, which nobody asks to go back.
pub(super) fn read<R: Recorder>(
    recorder: &mut R,
    graph: &Graph,
    state: &mut dyn State,
    place: usize,
    len_tokens: usize,
) -> Result<SequenceStates, BackendError> {
    let mut kept = SequenceStates::new();
    let Some(state) = state.as_any_mut().downcast_mut::<R::State>() else { return Ok(kept) };
    for (decl, stored, slots) in own(graph, state.rings(), recorder.info().kv_type, place, len_tokens) {
        let mut rows = Vec::new();
        for slots in slots {
            rows.extend(recorder.read_state(state, decl.id, slots)?);
        }
        kept.push((decl.id, KeptRows::of(stored, rows)));
    }
    Ok(kept)
}

/// Puts back what [`read`] gave.
pub(super) fn restore<R: Recorder>(
    recorder: &mut R,
    graph: &Graph,
    state: &mut dyn State,
    place: usize,
    len_tokens: usize,
    kept: &SequenceStates,
) -> Result<(), BackendError> {
    let Some(state) = state.as_any_mut().downcast_mut::<R::State>() else {
        return Err(BackendError::Input("the state belongs to another backend".into()));
    };
    let own = own(graph, state.rings(), recorder.info().kv_type, place, len_tokens);
    if !own.iter().map(|(decl, ..)| decl.id).eq(kept.iter().map(|(id, _)| *id)) {
        return Err(BackendError::Input(format!("{} states were kept, wanted {}", kept.len(), own.len())));
    }
    for ((decl, _, slots), (id, rows)) in own.iter().zip(kept) {
        let (rows, elems) = (rows.to_f32(), decl.row_elems());
        let count: usize = slots.iter().map(Range::len).sum();
        if rows.len() != count * elems {
            return Err(wrong(id, format!("{} elements, wanted {count} rows of {elems}", rows.len())));
        }
        let mut rest = &rows[..];
        for slots in slots {
            let (rows, behind) = rest.split_at(slots.len() * elems);
            recorder.write_state(state, *id, slots.start, rows)?;
            rest = behind;
        }
    }
    Ok(())
}
