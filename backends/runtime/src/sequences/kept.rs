//! What sequences' own states held at borders of blocks, for those who begin with the same tokens: a block's rows are found by
//! its key, and so is what stands beside them for a whole sequence.
//!
//! Such states are large (tens of megabytes for a hybrid model of 35 billion parameters), so only so many are kept, the longest
//! unused go first.

use crate::blocks::Key;
use crate::executable::SequenceStates;
use std::collections::HashMap;

/// States by the key of the block that they stand behind.
pub(super) struct KeptStates {
    most: usize,
    clock: u64,
    by_key: HashMap<Key, Kept>,
}

struct Kept {
    used: u64,
    states: SequenceStates,
}

impl KeptStates {
    /// Room for the states of `most` borders.
    pub fn new(most: usize) -> KeptStates {
        KeptStates { most, clock: 0, by_key: HashMap::new() }
    }

    /// Whether a border's are kept.
    pub fn has(&self, key: Key) -> bool {
        self.by_key.contains_key(&key)
    }

    /// Whether another border's fit without any others going.
    pub fn has_room(&self) -> bool {
        self.by_key.len() < self.most
    }

    /// A border's, which somebody takes up now.
    pub fn get(&mut self, key: Key) -> Option<&SequenceStates> {
        self.clock += 1;
        let kept = self.by_key.get_mut(&key)?;
        kept.used = self.clock;
        Some(&kept.states)
    }

    /// Keeps a border's; the longest unused go where there is no room.
    pub fn insert(&mut self, key: Key, states: SequenceStates) {
        while self.by_key.len() >= self.most.max(1) {
            let Some(oldest) = self.by_key.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| *key)
            else {
                break;
            };
            self.by_key.remove(&oldest);
        }
        self.clock += 1;
        self.by_key.insert(key, Kept { used: self.clock, states });
    }
}
