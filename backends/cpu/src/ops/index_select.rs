//! The positions that an indexer's scores choose: ties go to the earlier position, NaN ranks last.

use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output};

/// The launch.
pub struct IndexSelect {
    /// How many are chosen.
    pub top_k: usize,
    /// Of so many positions the last counts.
    pub every: usize,
    /// [T, S].
    pub scores: Input,
    /// [T, S], shared by [`Share::CachedRow`](crate::share::Share).
    pub out: Output,
}

/// A number that is the larger, the earlier in the order of choice a position stands; no two are equal.
fn rank(score: f32, position: usize) -> u64 {
    let bits = if score == 0.0 { 0 } else { score.to_bits() };
    let key = match score.is_nan() {
        true => 0,
        false if bits >> 31 == 1 => !bits,
        false => bits | 1 << 31,
    };
    u64::from(key) << 32 | u64::from(!(position as u32))
}

impl Launch for IndexSelect {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        let scores = self.scores.with_width(step.sizes.cached);
        let mut ranks: Vec<u64> = Vec::new();
        for mut chunk in worker.shares(step.sizes.tokens) {
            let token = chunk.number();
            let seen = step.position(token) + 1;
            let row = &step.row(scores, token)[..seen];
            let out = chunk.row_mut(step, &self.out, token);
            if self.every > 1 {
                out[..seen].fill(0.0);
            }
            out[seen..].fill(0.0);
            let counted = || (self.every - 1..seen).step_by(self.every);
            if counted().len() <= self.top_k {
                counted().for_each(|position| out[position] = 1.0);
                continue;
            }
            ranks.clear();
            ranks.extend(counted().map(|position| rank(row[position], position)));
            let (_, last, _) = ranks.select_nth_unstable_by(self.top_k - 1, |a, b| b.cmp(a));
            let last = *last;
            for position in counted() {
                out[position] = if rank(row[position], position) >= last { 1.0 } else { 0.0 };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::rank;

    #[test]
    fn larger_scores_and_earlier_positions_stand_before_others() {
        let order = [(f32::INFINITY, 9), (2.0, 1), (2.0, 7), (0.0, 2), (-0.0, 3), (-1.0, 0), (f32::NAN, 0)];
        assert!(order.windows(2).all(|w| rank(w[0].0, w[0].1) > rank(w[1].0, w[1].1)));
    }
}
