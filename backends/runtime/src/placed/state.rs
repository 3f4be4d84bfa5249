//! The states of all parts, side by side.

use crate::executable::{Ring, Rings, State};
use std::any::Any;

/// How the sequences of a pool lie.
pub(super) enum Places {
    /// Every part has a state for all sequences, which go through a step together.
    Together(Vec<Box<dyn State>>),
    /// Every sequence has a state of its own in every part: a part runs one sequence at a time, and so do all.
    Each(Vec<Vec<Box<dyn State>>>),
}

/// What is held between steps, of all parts.
pub(super) struct PlacedState {
    pub places: Places,
    pub capacity_tokens: usize,
    /// By state of the whole graph.
    pub rings: Rings,
}

impl PlacedState {
    fn all(&self) -> impl Iterator<Item = &dyn State> {
        let states: Vec<&Box<dyn State>> = match &self.places {
            Places::Together(states) => states.iter().collect(),
            Places::Each(sequences) => sequences.iter().flatten().collect(),
        };
        states.into_iter().map(AsRef::as_ref)
    }

    /// The states of parts that share blocks among sequences.
    fn together(&self) -> Option<&[Box<dyn State>]> {
        match &self.places {
            Places::Together(states) => Some(states),
            Places::Each(_) => None,
        }
    }
}

impl State for PlacedState {
    fn capacity_tokens(&self) -> usize {
        self.capacity_tokens
    }

    fn rings(&self) -> &[Option<Ring>] {
        &self.rings
    }

    fn max_sequences(&self) -> usize {
        match &self.places {
            Places::Together(states) => states.iter().map(|s| s.max_sequences()).min().unwrap_or(0),
            Places::Each(sequences) => sequences.len(),
        }
    }

    fn shares_blocks(&self) -> bool {
        self.together().is_some_and(|states| states.iter().all(|state| state.shares_blocks()))
    }

    /// Of all parts one behind the other.
    fn block_bytes(&self) -> Option<usize> {
        self.together()?.iter().map(|state| state.block_bytes()).sum()
    }

    fn read_block(&self, block: u32, out: &mut Vec<u8>) {
        self.together().into_iter().flatten().for_each(|state| state.read_block(block, out));
    }

    fn write_block(&mut self, block: u32, bytes: &[u8]) {
        let Places::Together(states) = &mut self.places else { return };
        let mut rest = bytes;
        for state in states {
            let own = state.block_bytes().unwrap_or(0).min(rest.len());
            let (of_state, behind) = rest.split_at(own);
            state.write_block(block, of_state);
            rest = behind;
        }
    }

    fn size_bytes(&self) -> u64 {
        self.all().map(State::size_bytes).sum()
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
