//! Which rows meet which expert: slots sorted by expert, so that an expert's weights are unpacked once for all of them.

use super::activations::Tile;
use crate::kernels::TILE_TOKENS;

/// Slots of a launch in the order of their groups, and the tiles that they make.
#[derive(Default)]
pub struct Slots {
    /// `pairs[slot]`: token · per_tok + k, the row of the result (and of a per-expert input).
    pub pairs: Vec<u32>,
    /// Tiles, group by group.
    pub tiles: Vec<Tile>,
    /// `first_tile[group]..first_tile[group + 1]` are a group's tiles.
    pub first_tile: Vec<u32>,
    counts: Vec<u32>,
    /// Groups of up to so many slots are cut into tiles of one.
    few: usize,
}

impl Slots {
    /// Room for `slots` rows in `groups` groups.
    pub fn new(slots: usize, groups: usize) -> Slots {
        Slots {
            pairs: vec![0; slots],
            tiles: Vec::with_capacity((slots / TILE_TOKENS + groups * TILE_TOKENS).min(slots) + 1),
            first_tile: Vec::with_capacity(groups + 2),
            counts: vec![0; groups + 1],
            few: 1,
        }
    }

    /// From now on groups of up to `few` slots are cut into tiles of one slot, any others into tiles of up to 8.
    pub fn cut_up_to(&mut self, few: usize) {
        self.few = few;
    }

    /// One group of `rows` rows in their own order.
    pub fn dense(&mut self, rows: usize) {
        for (i, pair) in self.pairs[..rows].iter_mut().enumerate() {
            *pair = i as u32;
        }
        self.tiles.clear();
        self.first_tile.clear();
        self.first_tile.push(0);
        self.group(0, 0, rows);
    }

    /// A group for each of `experts`, its slots in ascending order. `ids` [T, K] flat.
    pub fn by_expert(&mut self, ids: &[u32], experts: usize) {
        let counts = &mut self.counts[..experts + 1];
        counts.fill(0);
        for id in ids {
            counts[*id as usize + 1] += 1;
        }
        for e in 0..experts {
            counts[e + 1] += counts[e];
        }
        self.tiles.clear();
        self.first_tile.clear();
        self.first_tile.push(0);
        for e in 0..experts {
            let (first, end) = (self.counts[e] as usize, self.counts[e + 1] as usize);
            self.group(e, first, end);
        }
        for (pair, id) in ids.iter().enumerate() {
            let at = &mut self.counts[*id as usize];
            self.pairs[*at as usize] = pair as u32;
            *at += 1;
        }
    }

    /// A group for each of `heads` heads, through which every one of `tokens` tokens goes.
    pub fn by_head(&mut self, tokens: usize, heads: usize) {
        self.tiles.clear();
        self.first_tile.clear();
        self.first_tile.push(0);
        for head in 0..heads {
            let first = head * tokens;
            for (token, pair) in self.pairs[first..first + tokens].iter_mut().enumerate() {
                *pair = (token * heads + head) as u32;
            }
            self.group(head, first, first + tokens);
        }
    }

    /// A group for each of one token's choices, in the order of the choice.
    pub fn one_token(&mut self, ids: &[u32]) {
        self.tiles.clear();
        self.first_tile.clear();
        self.first_tile.push(0);
        for (k, id) in ids.iter().enumerate() {
            self.pairs[k] = k as u32;
            self.group(*id as usize, k, k + 1);
        }
    }

    fn group(&mut self, group: usize, first: usize, end: usize) {
        let most = if end - first <= self.few { 1 } else { TILE_TOKENS };
        for first in (first..end).step_by(most) {
            self.tiles.push(Tile { group, first, tokens: most.min(end - first) });
        }
        if self.tiles.len() > self.first_tile.last().map_or(0, |t| *t as usize) {
            self.first_tile.push(self.tiles.len() as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_stands_once_with_its_expert() {
        let ids: Vec<u32> = (0..150).map(|i| (i * i + i / 7) % 11).collect();
        let mut slots = Slots::new(ids.len(), 13);
        for few in [1, 4] {
            slots.cut_up_to(few);
            slots.by_expert(&ids, 13);
            let mut seen = vec![0; ids.len()];
            for (i, tile) in slots.tiles.iter().enumerate() {
                let group = slots.first_tile.iter().rposition(|first| *first as usize <= i).unwrap();
                assert_eq!(slots.tiles[slots.first_tile[group] as usize].group, tile.group);
                for slot in tile.first..tile.first + tile.tokens {
                    let pair = slots.pairs[slot] as usize;
                    seen[pair] += 1;
                    assert_eq!(ids[pair] as usize, tile.group);
                }
            }
            assert!(seen.iter().all(|n| *n == 1));
            // All groups have more than four.
            assert!(slots.tiles.iter().any(|tile| tile.tokens == TILE_TOKENS));
            slots.by_expert(&[3, 5, 3, 5, 3, 5, 3, 3, 3], 13);
            let of_five = slots.tiles.iter().filter(|tile| tile.group == 5).map(|tile| tile.tokens);
            assert!(of_five.eq(if few == 4 { vec![1, 1, 1] } else { vec![3] }));
        }
    }
}
