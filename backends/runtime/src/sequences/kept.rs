//! What sequences' own states held at borders of blocks, for those who begin with the same tokens: a block's rows are found by
//! its key, and so is what stands beside them for a whole sequence.
//!
//! Of states that are rings that is what the token behind the border sees.
//!
//! As in blocks, keys may meet by chance: the tokens before a border are kept and compared.
//!
//! Such states are large (tens of megabytes for a hybrid model of 35 billion parameters), so only so many are kept, the longest
//! unused go first.

use crate::blocks::Key;
use crate::executable::SequenceStates;
use moe_run_graph::ids::TokenId;
use std::collections::HashMap;

/// States by the key of the block that they stand behind.
pub(super) struct KeptStates {
    most: usize,
    clock: u64,
    by_key: HashMap<Key, Kept>,
}

struct Kept {
    used: u64,
    /// All before the border.
    tokens: Box<[TokenId]>,
    states: SequenceStates,
}

impl KeptStates {
    /// Room for the states of `most` borders.
    pub fn new(most: usize) -> KeptStates {
        KeptStates { most, clock: 0, by_key: HashMap::new() }
    }

    /// The most borders.
    pub fn most(&self) -> usize {
        self.most
    }

    /// All of them, the longest unused first: the tokens before the border, and the states.
    pub fn oldest_first(&self) -> Vec<(&[TokenId], &SequenceStates)> {
        let mut kept: Vec<&Kept> = self.by_key.values().collect();
        kept.sort_by_key(|kept| kept.used);
        kept.into_iter().map(|kept| (&*kept.tokens, &kept.states)).collect()
    }

    /// Keeps nothing any more.
    pub fn forget(&mut self) {
        self.by_key.clear();
    }

    /// Whether a border's are kept: that behind all these tokens.
    pub fn has(&self, key: Key, tokens: &[TokenId]) -> bool {
        self.by_key.get(&key).is_some_and(|kept| *kept.tokens == *tokens)
    }

    /// Whether another border's fit without any others going.
    pub fn has_room(&self) -> bool {
        self.by_key.len() < self.most
    }

    /// A border's, which somebody takes up now.
    pub fn get(&mut self, key: Key, tokens: &[TokenId]) -> Option<&SequenceStates> {
        self.clock += 1;
        let kept = self.by_key.get_mut(&key).filter(|kept| *kept.tokens == *tokens)?;
        kept.used = self.clock;
        Some(&kept.states)
    }

    /// Keeps a border's; the longest unused go where there is no room.
    pub fn insert(&mut self, key: Key, tokens: &[TokenId], states: SequenceStates) {
        while self.by_key.len() >= self.most.max(1) {
            let Some(oldest) = self.by_key.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| *key)
            else {
                break;
            };
            self.by_key.remove(&oldest);
        }
        self.clock += 1;
        self.by_key.insert(key, Kept { used: self.clock, tokens: tokens.into(), states });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_whose_keys_meet_are_told_apart() {
        let [one, other] = [[TokenId(1), TokenId(2)], [TokenId(1), TokenId(3)]];
        let (key, mut kept) = (Key::default(), KeptStates::new(2));
        kept.insert(key, &one, SequenceStates::new());
        assert!(kept.has(key, &one) && kept.get(key, &one).is_some());
        assert!(!kept.has(key, &other) && kept.get(key, &other).is_none());
        kept.insert(key, &other, SequenceStates::new());
        assert!(kept.has(key, &other) && !kept.has(key, &one) && kept.has_room());
    }
}
