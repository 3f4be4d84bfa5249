//! What a scaled element may be: the levels of a format, the nearest of them, and the scale that fits a run of weights best.

use crate::quant::{iq4_nl, mxfp4};

/// Elements that are summed side by side.
const LANES: usize = 8;
/// Added and taken off again, it rounds what is below 2^22 to the nearest whole number, ties to even.
const ROUNDER: f32 = 12_582_912.0;
/// How often a fit is repeated from its own result, as long as it gets better.
pub(super) const REPEATS: usize = 4;
/// Scales that are tried on each side of the one that puts the largest element on the last level.
const STEPS: i32 = 5;

/// The nearest whole number.
#[inline]
pub(super) fn nearest_whole(v: f32) -> f32 {
    (v + ROUNDER) - ROUNDER
}

/// The levels of a format: what its integers may be.
pub(super) trait Levels: Copy {
    /// The level nearest to `v`.
    fn nearest(self, v: f32) -> f32;

    /// The lowest and the highest level: what a run's largest element may be put on.
    fn ends(self) -> [f32; 2];

    /// How far beside the ends the largest element may come to lie, in levels.
    fn reach(self) -> f32;
}

/// Whole numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whole {
    pub low: f32,
    pub high: f32,
}

impl Levels for Whole {
    #[inline]
    fn nearest(self, v: f32) -> f32 {
        nearest_whole(v).max(self.low).min(self.high)
    }

    fn ends(self) -> [f32; 2] {
        [self.low, self.high]
    }

    fn reach(self) -> f32 {
        1.25
    }
}

/// Unequal steps, ascending: the first level, and for each further one how far above the one before it is, and half way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps<const N: usize> {
    first: f32,
    last: f32,
    step: [f32; N],
    half_way: [f32; N],
}

impl<const N: usize> Steps<N> {
    const fn new<const LEVELS: usize>(levels: [i8; LEVELS]) -> Steps<N> {
        assert!(LEVELS == N + 1);
        let (mut step, mut half_way, mut i) = ([0.0; N], [0.0; N], 0);
        while i < N {
            step[i] = (levels[i + 1] - levels[i]) as f32;
            half_way[i] = (levels[i + 1] as f32 + levels[i] as f32) / 2.0;
            i += 1;
        }
        Steps { first: levels[0] as f32, last: levels[N] as f32, step, half_way }
    }
}

impl<const N: usize> Levels for Steps<N> {
    #[inline]
    fn nearest(self, v: f32) -> f32 {
        let mut level = self.first;
        for i in 0..N {
            level += if v > self.half_way[i] { self.step[i] } else { 0.0 };
        }
        level
    }

    fn ends(self) -> [f32; 2] {
        [self.first, self.last]
    }

    fn reach(self) -> f32 {
        self.first.abs() / 8.0
    }
}

/// The levels of IQ4_NL and IQ4_XS.
pub(super) const IQ4: Steps<15> = Steps::new(iq4_nl::TABLE);
/// The levels of MXFP4, doubled: zero has two codes and is one level.
pub(super) const E2M1: Steps<14> = Steps::new(ascending(mxfp4::TABLE));

/// The table of a sign and a magnitude, from the lowest to the highest level, zero once.
const fn ascending(table: [i8; 16]) -> [i8; 15] {
    let (mut levels, mut i) = ([0; 15], 0);
    while i < 8 {
        levels[7 + i] = table[i];
        levels[7 - i] = -table[i];
        i += 1;
    }
    levels
}

/// Adds up two terms of each element and its weight.
#[inline]
fn add_up(x: &[f32], w: &[f32], term: impl Fn(f32, f32) -> (f32, f32)) -> (f32, f32) {
    let (mut a, mut b) = ([0.0f32; LANES], [0.0f32; LANES]);
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let (one, other) = term(x[i], w[i]);
            a[i] += one;
            b[i] += other;
        }
    }
    (a.iter().sum(), b.iter().sum())
}

/// Σ w·q·x and Σ w·q² of the levels that `x / scale` is nearest to.
#[inline]
fn products<L: Levels>(levels: L, x: &[f32], w: &[f32], inverse: f32) -> (f32, f32) {
    add_up(x, w, |x, w| {
        let q = levels.nearest(x * inverse);
        (w * q * x, w * q * q)
    })
}

/// Σ w·(scale·q − x)².
#[inline]
pub(super) fn error<L: Levels>(levels: L, x: &[f32], w: &[f32], scale: f32) -> f32 {
    let inverse = inverse(scale);
    add_up(x, w, |x, w| {
        let off = scale * levels.nearest(x * inverse) - x;
        (w * off * off, 0.0)
    })
    .0
}

/// 1 / scale, or 0 of what has none.
#[inline]
pub(super) fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The element farthest from 0.
pub(super) fn farthest(x: &[f32]) -> f32 {
    x.iter().copied().fold(0.0, |far, x| if x.abs() > f32::abs(far) { x } else { far })
}

/// The scale with the least Σ w·(scale·q − x)² of those tried: scales that put the largest element on or beside one of the
/// ends, then the least-squares scale of the levels that this gives, and so on. 0 of a run of zeros. Whole chunks of eight.
pub(super) fn best_scale<L: Levels>(levels: L, x: &[f32], w: &[f32]) -> f32 {
    let far = farthest(x);
    if far == 0.0 {
        return 0.0;
    }
    // For given levels the least-squares scale is p/n and the error Σ w·x² − p²/n.
    let (mut best, mut best_gain) = (0.0, 0.0);
    let mut look = |inverse: f32| {
        let (p, n) = products(levels, x, w, inverse);
        let gain = if n > 0.0 { p * p / n } else { 0.0 };
        let better = gain > best_gain;
        if better {
            (best, best_gain) = (p / n, gain);
        }
        (better, best)
    };
    let mut scale = 0.0;
    for end in levels.ends() {
        for step in -STEPS..=STEPS {
            (_, scale) = look((end + levels.reach() * step as f32 / STEPS as f32) / far);
        }
    }
    for _ in 0..REPEATS {
        let (better, found) = look(inverse(scale));
        scale = found;
        if !better {
            break;
        }
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_level_is_the_nearest() {
        fn check<L: Levels>(levels: L, all: &[f32]) {
            for i in -3000..3000 {
                let v = i as f32 * 0.05;
                let found = levels.nearest(v);
                let least = all.iter().map(|l| (l - v).abs()).fold(f32::INFINITY, f32::min);
                assert!(all.contains(&found) && (found - v).abs() == least, "{v}: {found}");
            }
        }
        check(IQ4, &iq4_nl::TABLE.map(f32::from));
        check(E2M1, &mxfp4::TABLE.map(f32::from));
        let whole: Vec<f32> = (-8..8).map(|q| q as f32).collect();
        check(Whole { low: -8.0, high: 7.0 }, &whole);
    }

    #[test]
    fn no_scale_of_a_fine_grid_is_better_by_more_than_a_hair() {
        let mut random = crate::synth::Random::new(&[11]);
        let levels = Whole { low: -8.0, high: 7.0 };
        let (mut found, mut ideal) = (0.0, 0.0);
        for _ in 0..200 {
            let x: Vec<f32> = (0..32).map(|_| random.signed_unit() + random.signed_unit()).collect();
            let w = vec![1.0; 32];
            found += error(levels, &x, &w, best_scale(levels, &x, &w));
            let grid = (1..2000).flat_map(|i| [i as f32 * 2e-4, i as f32 * -2e-4]);
            ideal += grid.map(|s| error(levels, &x, &w, s)).fold(f32::INFINITY, f32::min);
        }
        assert!(found <= 1.03 * ideal, "{found} {ideal}");
    }
}
