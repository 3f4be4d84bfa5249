//! States of which only a window is read: a ring of blocks for each sequence, in place of a row for every token.
//!
//! Position p of the sequence at place s is in slot (s · R + p / 64 mod R) · 64 + p mod 64 of a ring of R blocks: block p / 64 is
//! written over by block p / 64 + R. R is large enough that no two blocks that a step reads or writes meet. Input: a state's
//! declaration, and what a pool is for ([`PoolSize`]). Output: whether it is a ring, how large, which rows are still held.
//! Deliberately absent: the rows themselves, which are a backend's.

use crate::options::KvType;
use crate::step::{BLOCK_TOKENS, StepSequence};
use moe_run_graph::ir::{Graph, Lifetime, StateDecl};
use std::ops::Range;

/// What the states of a pool are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSize {
    /// Tokens of all sequences together.
    pub tokens: usize,
    /// Sequences at once.
    pub sequences: usize,
    /// The largest T of a step; the largest number where every state is to have a row for every token.
    pub micro_batch: usize,
}

impl PoolSize {
    /// One sequence of so many tokens, in steps of up to `micro_batch`.
    #[must_use]
    pub fn of_one(tokens: usize, micro_batch: usize) -> PoolSize {
        PoolSize { tokens, sequences: 1, micro_batch }
    }

    /// One sequence of so many tokens, on a backend whose states have a row for every one of them.
    #[must_use]
    pub fn whole(tokens: usize) -> PoolSize {
        PoolSize::of_one(tokens, usize::MAX)
    }

    /// The ring that a state is; `None` where it has a row for every token, or one for a sequence. Rings that would be no
    /// smaller than a row for every token are none.
    #[must_use]
    pub fn ring(&self, decl: &StateDecl) -> Option<Ring> {
        let ring = Ring::of(decl.window()?, self.micro_batch);
        let blocks = ring.blocks.saturating_mul(self.sequences);
        (blocks < self.tokens.div_ceil(BLOCK_TOKENS)).then_some(ring)
    }

    /// The rings of a graph's states, by state.
    #[must_use]
    pub fn rings(&self, states: &[StateDecl]) -> Rings {
        states.iter().map(|state| self.ring(state)).collect()
    }

    /// Rows of a state.
    #[must_use]
    pub fn rows(&self, decl: &StateDecl) -> usize {
        match (decl.lifetime, self.ring(decl)) {
            (Lifetime::PerSequence, _) => self.sequences,
            (Lifetime::PerToken { .. }, None) => self.tokens,
            (Lifetime::PerToken { .. }, Some(ring)) => ring.tokens() * self.sequences,
        }
    }

    /// Bytes of every state of a graph; the largest number where they cannot be counted.
    #[must_use]
    pub fn bytes(&self, graph: &Graph, kv_type: KvType) -> u64 {
        graph.states.iter().map(|state| self.state_bytes(state, kv_type)).fold(0, u64::saturating_add)
    }

    /// Bytes of a state; the largest number where they cannot be counted.
    #[must_use]
    pub fn state_bytes(&self, state: &StateDecl, kv_type: KvType) -> u64 {
        let row_bytes = match state.lifetime {
            Lifetime::PerToken { .. } => kv_type.row_bytes(state.row_elems()),
            Lifetime::PerSequence => KvType::F32.row_bytes(state.row_elems()),
        };
        (row_bytes as u64).saturating_mul(self.rows(state) as u64)
    }

    /// The most tokens whose states take no more than so many bytes; not more than there are.
    #[must_use]
    pub fn most_tokens(&self, graph: &Graph, kv_type: KvType, bytes: u64) -> usize {
        let (mut fits, mut too_many) = (0, self.tokens.saturating_add(1));
        while too_many - fits > 1 {
            let tokens = fits + (too_many - fits) / 2;
            match (PoolSize { tokens, ..*self }).bytes(graph, kv_type) <= bytes {
                true => fits = tokens,
                false => too_many = tokens,
            }
        }
        fits
    }
}

/// The rings of a graph's states, by state; `None` for those that are none.
pub type Rings = Box<[Option<Ring>]>;

/// A state of a window's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// Only the last so many tokens are ever read.
    pub window: usize,
    /// R.
    pub blocks: usize,
}

impl Ring {
    /// The ring for a window and steps of up to `micro_batch` tokens: as many blocks as the step's rows and what the first of
    /// them sees can touch.
    #[must_use]
    pub fn of(window: usize, micro_batch: usize) -> Ring {
        let rows = window.saturating_add(micro_batch).saturating_sub(1);
        Ring { window, blocks: (rows.saturating_add(BLOCK_TOKENS - 2) / BLOCK_TOKENS).saturating_add(1) }
    }

    /// Rows of a sequence.
    #[must_use]
    pub fn tokens(self) -> usize {
        self.blocks.saturating_mul(BLOCK_TOKENS)
    }

    /// The slot of a position of the sequence at `place`.
    #[must_use]
    pub fn slot(self, place: usize, position: usize) -> usize {
        (place * self.blocks + position / BLOCK_TOKENS % self.blocks) * BLOCK_TOKENS + position % BLOCK_TOKENS
    }

    /// The first position that is held once those up to `end` were written: of whole blocks only.
    #[must_use]
    pub fn first_held(self, end: usize) -> usize {
        end.div_ceil(BLOCK_TOKENS).saturating_sub(self.blocks) * BLOCK_TOKENS
    }

    /// The least length that a sequence can go back to once its positions up to `end` were written: all that its next token
    /// sees is held.
    #[must_use]
    pub fn shortest(self, end: usize) -> usize {
        match self.first_held(end) {
            0 => 0,
            first => first + self.window.saturating_sub(1),
        }
    }

    /// What a sequence of `len_tokens` tokens needs to go on from there: the whole blocks of what its next token sees.
    #[must_use]
    pub fn needed(self, len_tokens: usize) -> Range<usize> {
        (len_tokens + 1).saturating_sub(self.window) / BLOCK_TOKENS * BLOCK_TOKENS..len_tokens
    }
}

impl StepSequence<'_> {
    /// The slot of a position in a state that is a ring, or has a row for every token.
    #[must_use]
    pub fn slot_in(&self, ring: Option<Ring>, position: usize) -> usize {
        match ring {
            Some(ring) => ring.slot(self.place as usize, position),
            None => self.slot(position),
        }
    }
}

/// Whether states of these rings hold what a graph declares, for steps of up to `micro_batch` tokens.
pub(crate) fn hold(rings: &[Option<Ring>], states: &[StateDecl], micro_batch: usize) -> bool {
    rings.iter().zip(states).all(|(ring, state)| match (ring, state.window()) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(ring), Some(window)) => {
            ring.window >= window && ring.blocks >= Ring::of(ring.window, micro_batch).blocks
        }
    })
}

/// Where a sequence can go back to without anything that was kept: its beginning, and any length from the least one on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    shortest: usize,
}

impl Held {
    /// Of a sequence of this length, of which nothing is held but what its next token needs.
    pub fn from(len_tokens: usize) -> Held {
        Held { shortest: len_tokens }
    }

    /// Positions up to `end` are written.
    pub fn write(&mut self, rings: &[Option<Ring>], end: usize) {
        let shortest = rings.iter().flatten().map(|ring| ring.shortest(end)).max();
        self.shortest = self.shortest.max(shortest.unwrap_or(0));
    }

    /// Whether it can go back to this length. At the beginning every state begins anew.
    pub fn reaches(&self, len_tokens: usize) -> bool {
        len_tokens == 0 || len_tokens >= self.shortest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever a step of any length reads or writes is in blocks of its own, and what it may go back to is still there.
    #[test]
    fn no_two_positions_of_a_step_meet() {
        for (window, micro_batch) in [(1, 1), (1, 64), (8, 96), (64, 1), (65, 63), (128, 512), (200, 7)] {
            let ring = Ring::of(window, micro_batch);
            for start in 0..3 * ring.tokens() {
                for end in [start + 1, start + micro_batch.div_ceil(2), start + micro_batch] {
                    let first = (start + 1).saturating_sub(window) / BLOCK_TOKENS;
                    let touched = end.div_ceil(BLOCK_TOKENS) - first;
                    assert!(touched <= ring.blocks, "{window} {micro_batch} {start}..{end}");
                    // A step that fails leaves its sequence where it was.
                    let mut held = Held::default();
                    held.write(&[Some(ring), None], end);
                    assert!(held.reaches(start), "{window} {micro_batch} {start}..{end}: {held:?}");
                    assert!(ring.needed(start).start >= ring.first_held(end) && held.reaches(0));
                }
            }
            // The ring is no larger than it must be: one block less, and some step meets itself.
            let meets = (0..BLOCK_TOKENS + window).any(|start| {
                let first = (start + 1).saturating_sub(window) / BLOCK_TOKENS;
                (start + micro_batch).div_ceil(BLOCK_TOKENS) - first == ring.blocks
            });
            assert!(meets, "{window} {micro_batch}: {ring:?}");
        }
    }

    #[test]
    fn what_was_written_over_is_not_gone_back_to() {
        let ring = Ring { window: 10, blocks: 3 };
        let mut held = Held::default();
        held.write(&[Some(ring)], 192);
        assert!((0..193).all(|len| held.reaches(len)), "nothing was written over");
        held.write(&[Some(ring)], 193);
        // Block 0 is gone: from length 73 on, the next token sees 64 and later.
        assert_eq!((0..194).filter(|len| held.reaches(*len)).collect::<Vec<_>>()[..3], [0, 73, 74]);
        assert_eq!(ring.needed(73), 64..73);
        assert_eq!((ring.slot(0, 64), ring.slot(0, 192), ring.slot(2, 193)), (64, 0, 385));
        held = Held::from(128);
        assert!(held.reaches(0) && !held.reaches(127) && held.reaches(128));
    }
}
