//! The blocks of a pool: who has which, and what full blocks hold, so that a later sequence with the same beginning takes them
//! instead of computing them again.
//!
//! Input: ids of whole blocks, each behind its parent's key. Output: blocks, with a count of those who have them. A block that
//! nobody has and that others may still want is kept until its room is needed, the longest unused first. Keys are hashes and may
//! meet by chance: the ids of a block are kept and compared, so that nobody gets another's state. Deliberately absent: the
//! states' memory, and what a block costs.

use crate::step::BLOCK_TOKENS;
use moe_run_graph::ids::TokenId;
use std::collections::{BTreeMap, HashMap};

/// What a block holds: a hash of its ids and of all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Key([u64; 2]);

impl Key {
    /// The key of a block behind `self`, which is the default for the first.
    pub(crate) fn of(self, tokens: &[TokenId]) -> Key {
        let half = |salt: u64| {
            let start = mix(mix(salt, self.0[0]), self.0[1]);
            tokens.iter().fold(start, |hash, token| mix(hash, u64::from(token.0)))
        };
        Key([half(0x243f_6a88_85a3_08d3), half(0x1319_8a2e_0370_7344)])
    }

    /// For files.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (half, out) in self.0.iter().zip(bytes.as_chunks_mut::<8>().0) {
            *out = half.to_le_bytes();
        }
        bytes
    }

    /// Of a file.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Key {
        let mut halves = [0; 2];
        for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *half = u64::from_le_bytes(*bytes);
        }
        Key(halves)
    }
}

/// A hash with one more value, the same in every build: what files say must be found again.
pub(crate) fn mix(hash: u64, value: u64) -> u64 {
    // Two rounds of multiplication by an odd constant and a shift, as in SplitMix64.
    let mut x = (hash.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 32)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 29)
}

/// What a block is known to hold.
#[derive(Debug)]
struct Content {
    key: Key,
    parent: Key,
    tokens: Box<[TokenId]>,
}

#[derive(Debug, Default)]
struct Block {
    /// Sequences that have it.
    holders: u32,
    content: Option<Content>,
    /// Its place among the idle ones, where nobody has it.
    idle_since: u64,
}

/// Blocks, by number.
#[derive(Debug)]
pub(crate) struct Blocks {
    blocks: Vec<Block>,
    /// Blocks that nobody has and that hold nothing, the next one last.
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    /// Blocks that nobody has and that hold something, the longest unused first.
    idle: BTreeMap<u64, u32>,
    clock: u64,
}

impl Blocks {
    pub(crate) fn new(count: usize) -> Blocks {
        Blocks {
            blocks: (0..count).map(|_| Block::default()).collect(),
            free: (0..count as u32).rev().collect(),
            by_key: HashMap::new(),
            idle: BTreeMap::new(),
            clock: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// How many can be taken.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// A block for somebody alone, whatever it held is forgotten; `None` where all are in use.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                let (_, number) = self.idle.pop_first()?;
                self.forget(number);
                number
            }
        };
        self.blocks.get_mut(number as usize)?.holders = 1;
        Some(number)
    }

    /// Gives back blocks of a sequence, in order: of those that are kept the last goes first, for it is of no use without those
    /// before it.
    pub(crate) fn give_back(&mut self, blocks: impl DoubleEndedIterator<Item = u32>) {
        for number in blocks.rev() {
            let Some(block) = self.blocks.get_mut(number as usize) else { continue };
            block.holders = block.holders.saturating_sub(1);
            if block.holders > 0 {
                continue;
            }
            match block.content {
                None => self.free.push(number),
                Some(_) => {
                    self.clock += 1;
                    block.idle_since = self.clock;
                    self.idle.insert(self.clock, number);
                }
            }
        }
    }

    /// The block that holds these ids behind `parent`, and whether nobody has it now.
    pub(crate) fn find(&self, parent: Key, tokens: &[TokenId]) -> Option<(u32, bool)> {
        let number = *self.by_key.get(&parent.of(tokens))?;
        let block = self.blocks.get(number as usize)?;
        let content = block.content.as_ref()?;
        let is_same = content.parent == parent && *content.tokens == *tokens;
        is_same.then_some((number, block.holders == 0))
    }

    /// One more has a block.
    pub(crate) fn hold(&mut self, number: u32) {
        let Some(block) = self.blocks.get_mut(number as usize) else { return };
        if block.holders == 0 {
            self.idle.remove(&block.idle_since);
        }
        block.holders += 1;
    }

    /// Says what a full block holds, for others to find. `None` where another content has the same key: then nothing behind it
    /// can be told apart either.
    pub(crate) fn publish(&mut self, number: u32, parent: Key, tokens: &[TokenId]) -> Option<Key> {
        debug_assert_eq!(tokens.len(), BLOCK_TOKENS);
        let key = parent.of(tokens);
        if self.by_key.contains_key(&key) {
            // Computed twice at the same time: the first stays.
            return self.find(parent, tokens).map(|_| key);
        }
        let block = self.blocks.get_mut(number as usize)?;
        if block.content.is_none() {
            block.content = Some(Content { key, parent, tokens: tokens.into() });
            self.by_key.insert(key, number);
        }
        Some(key)
    }

    /// Whether a block may be written to by its only holder, which then holds something else. `false` where others have it.
    pub(crate) fn make_private(&mut self, number: u32) -> bool {
        let is_only = self.blocks.get(number as usize).is_some_and(|b| b.holders == 1);
        if is_only {
            self.forget(number);
        }
        is_only
    }

    /// Blocks that nobody has and that hold something, the longest unused first: number, parent's key, ids.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (u32, Key, &[TokenId])> {
        self.idle.values().filter_map(|number| {
            let Content { key: _, parent, tokens } = self.blocks.get(*number as usize)?.content.as_ref()?;
            Some((*number, *parent, tokens.as_ref()))
        })
    }

    /// A block that holds these ids behind `parent` and that nobody has, for whoever fills it. `None` where there is one already,
    /// or no block is free.
    pub(crate) fn restore(&mut self, parent: Key, tokens: &[TokenId]) -> Option<u32> {
        if self.by_key.contains_key(&parent.of(tokens)) {
            return None;
        }
        let number = self.free.pop()?;
        self.publish(number, parent, tokens)?;
        self.clock += 1;
        self.blocks.get_mut(number as usize)?.idle_since = self.clock;
        self.idle.insert(self.clock, number);
        Some(number)
    }

    /// Forgets what blocks hold that nobody has.
    pub(crate) fn forget_idle(&mut self) {
        while let Some((_, number)) = self.idle.pop_first() {
            self.forget(number);
            self.free.push(number);
        }
    }

    fn forget(&mut self, number: u32) {
        if let Some(content) = self.blocks.get_mut(number as usize).and_then(|b| b.content.take()) {
            self.by_key.remove(&content.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(first: u32) -> Vec<TokenId> {
        (first..first + BLOCK_TOKENS as u32).map(TokenId).collect()
    }

    #[test]
    fn a_block_is_kept_until_its_room_is_needed_and_the_longest_unused_goes_first() {
        let mut blocks = Blocks::new(3);
        let root = Key::default();
        let (a, b) = (blocks.take().unwrap(), blocks.take().unwrap());
        let key = blocks.publish(a, root, &text(0)).unwrap();
        blocks.publish(b, key, &text(100)).unwrap();
        assert_eq!(blocks.find(root, &text(0)), Some((a, false)));
        assert_eq!(blocks.find(root, &text(1)), None);
        assert_eq!(blocks.find(root, &text(100)), None, "the same ids behind other ones");
        assert_eq!(blocks.available(), 1);
        blocks.give_back([a, b].into_iter());
        assert_eq!(blocks.available(), 3);
        assert_eq!(blocks.find(key, &text(100)), Some((b, true)));
        let taken = blocks.take().unwrap();
        assert!(taken != a && taken != b, "a block that holds nothing goes first");
        assert_eq!(blocks.take(), Some(b), "then the end of what is idle");
        assert_eq!(blocks.find(key, &text(100)), None);
        blocks.hold(a);
        assert_eq!((blocks.available(), blocks.take()), (0, None));
        blocks.hold(a);
        assert!(!blocks.make_private(a), "two have it");
        blocks.give_back([a].into_iter());
        assert!(blocks.make_private(a));
        assert_eq!(blocks.find(root, &text(0)), None);
        blocks.give_back([a, taken, b].into_iter());
        assert_eq!(blocks.available(), 3);
    }

    #[test]
    fn the_same_computed_twice_is_found_once() {
        let mut blocks = Blocks::new(2);
        let (a, b) = (blocks.take().unwrap(), blocks.take().unwrap());
        let root = Key::default();
        assert_eq!(blocks.publish(a, root, &text(0)), blocks.publish(b, root, &text(0)));
        assert_eq!(blocks.find(root, &text(0)), Some((a, false)));
        blocks.give_back([b].into_iter());
        assert_eq!(blocks.find(root, &text(0)), Some((a, false)));
        blocks.give_back([a].into_iter());
        assert_eq!(blocks.available(), 2);
    }
}
