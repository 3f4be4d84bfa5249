//! Statistics of tapped values: each value is read once, in f64, and dropped.

use super::{for_each_row, number};
use moe_run_graph::ir::Stage;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{Observer, TapValue};
use serde::Serialize;
use std::collections::HashMap;

/// Elements that are read together: they stay in the first-level cache between the loops over them.
const CHUNK_ELEMS: usize = 512;

/// Statistics of a stream of elements. mean, std_dev, min, max and l2_norm are over the finite elements (NaN where there
/// are none); the others are counted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stats {
    /// All elements.
    pub count: u64,
    /// Σx / n.
    #[serde(serialize_with = "number::f64")]
    pub mean: f64,
    /// √(Σ(x − mean)² / n).
    #[serde(serialize_with = "number::f64")]
    pub std_dev: f64,
    /// The least.
    #[serde(serialize_with = "number::f64")]
    pub min: f64,
    /// The greatest.
    #[serde(serialize_with = "number::f64")]
    pub max: f64,
    /// √Σx².
    #[serde(serialize_with = "number::f64")]
    pub l2_norm: f64,
    /// NaN.
    pub nan_count: u64,
    /// Infinities of either sign.
    pub inf_count: u64,
    /// Zeros of either sign.
    pub zero_count: u64,
}

/// Gathers [`Stats`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Accumulator {
    count: u64,
    finite: u64,
    mean: f64,
    /// Σ(x − mean)².
    m2: f64,
    sum_squares: f64,
    min_max: Option<(f32, f32)>,
    nan_count: u64,
    inf_count: u64,
    zero_count: u64,
}

impl Accumulator {
    /// Adds elements.
    pub fn add(&mut self, elems: &[f32]) {
        for chunk in elems.chunks(CHUNK_ELEMS) {
            self.add_chunk(chunk);
        }
    }

    fn add_chunk(&mut self, chunk: &[f32]) {
        self.count += chunk.len() as u64;
        let sums = if all_finite(chunk) { Sums::of(chunk) } else { self.count_non_finite(chunk) };
        self.zero_count += sums.zeros;
        let n = sums.finite;
        if n == 0 {
            return;
        }
        let mean = sums.sum / n as f64;
        let square = |x: f32| (f64::from(x) - mean) * (f64::from(x) - mean);
        let m2 = if n == chunk.len() as u64 {
            lanes_sum(chunk, square)
        } else {
            lanes_sum(chunk, |x| if x.is_finite() { square(x) } else { 0.0 })
        };
        // Two samples joined (Chan, Golub, LeVeque 1979): no cancellation, whatever the mean.
        let (before, total) = (self.finite as f64, (self.finite + n) as f64);
        let delta = mean - self.mean;
        self.mean += delta * n as f64 / total;
        self.m2 += m2 + delta * delta * before * n as f64 / total;
        self.sum_squares += sums.squares;
        self.finite += n;
        let (min, max) = (sums.min, sums.max);
        self.min_max = Some(self.min_max.map_or((min, max), |(a, b)| (a.min(min), b.max(max))));
    }

    /// Counts what is not finite, and sums up the rest.
    fn count_non_finite(&mut self, chunk: &[f32]) -> Sums {
        let nan = chunk.iter().filter(|x| x.is_nan()).count();
        let finite: Vec<f32> = chunk.iter().copied().filter(|x| x.is_finite()).collect();
        self.nan_count += nan as u64;
        self.inf_count += (chunk.len() - finite.len() - nan) as u64;
        Sums::of(&finite)
    }

    /// The statistics so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let or_nan = |x: f64| if self.finite == 0 { f64::NAN } else { x };
        let (min, max) = self.min_max.unwrap_or((f32::NAN, f32::NAN));
        Stats {
            count: self.count,
            mean: or_nan(self.mean),
            std_dev: or_nan((self.m2 / self.finite.max(1) as f64).sqrt()),
            min: f64::from(min),
            max: f64::from(max),
            l2_norm: or_nan(self.sum_squares.sqrt()),
            nan_count: self.nan_count,
            inf_count: self.inf_count,
            zero_count: self.zero_count,
        }
    }
}

/// Sums that run side by side: the order of additions is fixed, and a vector register holds several.
const LANES: usize = 16;

/// Σ f(x).
fn lanes_sum(elems: &[f32], f: impl Fn(f32) -> f64) -> f64 {
    let mut lanes = [0f64; LANES];
    let mut parts = elems.chunks_exact(LANES);
    for part in &mut parts {
        for (lane, x) in lanes.iter_mut().zip(part) {
            *lane += f(*x);
        }
    }
    lanes.iter().sum::<f64>() + parts.remainder().iter().map(|x| f(*x)).sum::<f64>()
}

/// Whether there is neither a NaN nor an infinity: their exponent's bits are all set. Integers, as a sum of floats would
/// have to keep its order; and no early end, so that vectors can be compared.
fn all_finite(elems: &[f32]) -> bool {
    const EXPONENT: u32 = f32::INFINITY.to_bits();
    elems.iter().fold(0, |found, x| found | u32::from(x.to_bits() & EXPONENT == EXPONENT)) == 0
}

/// What one loop over finite elements gathers.
struct Sums {
    finite: u64,
    sum: f64,
    squares: f64,
    min: f32,
    max: f32,
    zeros: u64,
}

impl Sums {
    fn of(elems: &[f32]) -> Sums {
        let least = |a: f32, b: f32| if b < a { b } else { a };
        let most = |a: f32, b: f32| if b > a { b } else { a };
        Sums {
            finite: elems.len() as u64,
            sum: lanes_sum(elems, f64::from),
            squares: lanes_sum(elems, |x| f64::from(x) * f64::from(x)),
            min: lanes_fold(elems, f32::INFINITY, least),
            max: lanes_fold(elems, f32::NEG_INFINITY, most),
            zeros: elems.iter().map(|x| u32::from(*x == 0.0)).sum::<u32>().into(),
        }
    }
}

/// f over all elements and the start, in lanes.
fn lanes_fold(elems: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let mut parts = elems.chunks_exact(LANES);
    for part in &mut parts {
        for (lane, x) in lanes.iter_mut().zip(part) {
            *lane = f(*lane, *x);
        }
    }
    lanes.iter().chain(parts.remainder()).copied().fold(start, f)
}

/// Of which positions statistics are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// This one: the prompt's last.
    Only(u32),
    /// All.
    All,
}

/// The statistics of one stage.
#[derive(Debug, Clone)]
pub struct StageStats {
    /// The stage.
    pub stage: Stage,
    /// Its layer.
    pub layer: Option<usize>,
    /// It fed the logits.
    pub production: bool,
    /// Of the positions that were asked for.
    pub selected: Accumulator,
    /// The first position with an element that is not finite (every position is looked at), and whether it is NaN.
    pub first_non_finite: Option<(u32, bool)>,
}

/// Takes statistics of every tap.
#[derive(Debug)]
pub struct StatsSink {
    positions: Positions,
    entries: Vec<StageStats>,
    index: HashMap<(Stage, Option<usize>), usize>,
}

impl StatsSink {
    /// A sink without entries.
    #[must_use]
    pub fn new(positions: Positions) -> StatsSink {
        StatsSink { positions, entries: Vec::new(), index: HashMap::new() }
    }

    /// Of which positions statistics are taken from here on.
    pub fn select(&mut self, positions: Positions) {
        self.positions = positions;
    }

    /// The entries in the order in which the stages were first computed.
    #[must_use]
    pub fn entries(&self) -> &[StageStats] {
        &self.entries
    }

    /// The entry of a stage.
    #[must_use]
    pub fn get(&self, stage: Stage, layer: Option<usize>) -> Option<&StageStats> {
        self.index.get(&(stage, layer)).map(|i| &self.entries[*i])
    }

    /// The first stage, in the order of execution, with an element that is not finite.
    #[must_use]
    pub fn first_non_finite(&self) -> Option<&StageStats> {
        self.entries.iter().find(|e| e.first_non_finite.is_some())
    }
}

impl Observer for StatsSink {
    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        let entries = &mut self.entries;
        let at = *self.index.entry((tap.stage, tap.layer)).or_insert_with(|| {
            entries.push(StageStats {
                stage: tap.stage,
                layer: tap.layer,
                production: tap.production,
                selected: Accumulator::default(),
                first_non_finite: None,
            });
            entries.len() - 1
        });
        let (entry, positions) = (&mut entries[at], self.positions);
        for_each_row(tap, |position, elems| {
            if positions == Positions::All || positions == Positions::Only(position) {
                entry.selected.add(elems);
            }
            if !all_finite(elems) && entry.first_non_finite.is_none_or(|(p, _)| position < p) {
                entry.first_non_finite = Some((position, elems.iter().any(|x| x.is_nan())));
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Accumulator;

    #[test]
    fn agrees_with_two_passes_far_from_zero() {
        let elems: Vec<f32> = (0..5000u32).map(|i| 1.0e5 + (i * 7919 % 1000) as f32 / 8.0).collect();
        let mut accumulator = Accumulator::default();
        for part in elems.chunks(777) {
            accumulator.add(part);
        }
        let stats = accumulator.stats();
        let n = elems.len() as f64;
        let mean = elems.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let var = elems.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
        assert!((stats.mean - mean).abs() < 1e-9 * mean);
        assert!((stats.std_dev - var.sqrt()).abs() < 1e-9 * var.sqrt());
        assert_eq!(stats.count, 5000);
    }

    #[test]
    fn counts_what_is_not_finite_and_leaves_it_out() {
        let mut accumulator = Accumulator::default();
        accumulator.add(&[3.0, f32::NAN, -4.0, f32::INFINITY, 0.0, -0.0, f32::NEG_INFINITY]);
        let stats = accumulator.stats();
        assert_eq!((stats.count, stats.nan_count, stats.inf_count, stats.zero_count), (7, 1, 2, 2));
        assert_eq!((stats.min, stats.max, stats.l2_norm, stats.mean), (-4.0, 3.0, 5.0, -0.25));
        let mut accumulator = Accumulator::default();
        accumulator.add(&[f32::NAN]);
        assert!(accumulator.stats().mean.is_nan() && accumulator.stats().min.is_nan());
    }
}
