//! Shapes of values: axes that the model fixes, and those that a step gives.

use serde::Serialize;
use std::fmt;

/// One axis of a value's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dim {
    /// T: the tokens of the step; known when the step runs, bounded by the plan's token class.
    Tokens,
    /// R: the rows whose logits the step asks for.
    LogitsRows,
    /// S: cached positions up to and including this step's.
    Cached,
    /// A number fixed by the model.
    Fixed(usize),
}

/// The sizes that a step gives to the run-time axes (or their upper bounds, when memory is planned).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StepSizes {
    /// T.
    pub tokens: usize,
    /// R.
    pub logits_rows: usize,
    /// S.
    pub cached: usize,
}

impl Dim {
    /// The number of elements along this axis in a step of the given sizes.
    #[must_use]
    pub fn size(self, sizes: StepSizes) -> usize {
        match self {
            Dim::Tokens => sizes.tokens,
            Dim::LogitsRows => sizes.logits_rows,
            Dim::Cached => sizes.cached,
            Dim::Fixed(n) => n,
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Tokens => f.write_str("T"),
            Dim::LogitsRows => f.write_str("R"),
            Dim::Cached => f.write_str("S"),
            Dim::Fixed(n) => write!(f, "{n}"),
        }
    }
}

impl Serialize for Dim {
    /// A number where it is fixed, else the axis's letter.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Dim::Fixed(n) => serializer.serialize_u64(*n as u64),
            Dim::Tokens | Dim::LogitsRows | Dim::Cached => serializer.collect_str(self),
        }
    }
}

/// A value's shape, outermost axis first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape(pub Vec<Dim>);

impl Shape {
    /// The shape with the given axes.
    #[must_use]
    pub fn new(dims: &[Dim]) -> Shape {
        Shape(dims.to_vec())
    }

    /// The concrete sizes in a step.
    #[must_use]
    pub fn resolve(&self, sizes: StepSizes) -> Vec<usize> {
        self.0.iter().map(|d| d.size(sizes)).collect()
    }

    /// Elements in a step of the given sizes.
    #[must_use]
    pub fn elems(&self, sizes: StepSizes) -> usize {
        self.0.iter().map(|d| d.size(sizes)).product()
    }

    /// The fixed size of the last axis; `None` for a scalar or a run-time last axis.
    #[must_use]
    pub fn width(&self) -> Option<usize> {
        match self.0.last() {
            Some(Dim::Fixed(n)) => Some(*n),
            _ => None,
        }
    }

    /// Whether all axes but the last are the other's: the two can stand side by side.
    #[must_use]
    pub fn stands_beside(&self, other: &Shape) -> bool {
        match (self.0.split_last(), other.0.split_last()) {
            (Some((_, a)), Some((_, b))) => a == b,
            _ => false,
        }
    }

    /// The product of all fixed axes: the elements that one token (or row) holds.
    #[must_use]
    pub fn fixed_elems(&self) -> usize {
        self.0.iter().map(|d| if let Dim::Fixed(n) = d { *n } else { 1 }).product()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

impl Serialize for Shape {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}
