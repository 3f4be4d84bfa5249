//! The tolerance table: every limit that a comparison of two runs is judged by, with its cause beside it.
//!
//! [`local`] limits an op that was given the other side's inputs; [`free`] limits a stage of a run that was left to
//! itself, where rounding has grown through everything before. Both are relative, and a value that is not finite on one
//! side only is beyond any of them.

use moe_run_runtime::executable::{Activations, ExecutableInfo, KvType};
use serde::Serialize;

/// How the arithmetic of the two sides relates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// The same activation setting, block lengths and KV type on both sides: only the order of sums differs.
    Same,
    /// The other side is exact (float64, no rounding of activations or KV rows), or rounds otherwise.
    Different,
}

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tolerance {
    /// Relative.
    pub value: f64,
    /// Why it is not smaller.
    pub cause: &'static str,
}

/// A line of the table; the first that fits counts. `None` fits all.
struct Line {
    backend: Option<&'static str>,
    stems: &'static [&'static str],
    activations: Option<Activations>,
    relation: Option<Relation>,
    kv_type: Option<KvType>,
    tolerance: Tolerance,
}

const ANY: &[&str] = &[];

/// A line for every backend, activation setting, relation and KV type.
const fn line(stems: &'static [&'static str], value: f64, cause: &'static str) -> Line {
    Line {
        backend: None,
        stems,
        activations: None,
        relation: None,
        kv_type: None,
        tolerance: Tolerance { value, cause },
    }
}

/// Ops that multiply with stored weights: their inputs are what `--activations` rounds.
const PRODUCTS: &[&str] = &["matmul", "head_matmul", "expert_matmul"];
/// Ops that read the KV cache.
const CACHE: &[&str] = &["attention", "attention_scores", "attention_softmax", "kv_write"];

const LOCAL: &[Line] = &[
    Line {
        activations: Some(Activations::Q8),
        relation: Some(Relation::Different),
        ..line(PRODUCTS, 3e-2, "8-bit activations: half a step of amax/127 in each, against none")
    },
    Line {
        activations: Some(Activations::F16),
        relation: Some(Relation::Different),
        ..line(PRODUCTS, 1e-3, "activations rounded to 11 bits, against none")
    },
    Line {
        kv_type: Some(KvType::Q8_0),
        relation: Some(Relation::Different),
        ..line(CACHE, 3e-2, "K and V rows of 8 bits, against none")
    },
    Line {
        kv_type: Some(KvType::F16),
        relation: Some(Relation::Different),
        ..line(CACHE, 2e-3, "K and V rows of 11 bits, against none")
    },
    line(&["embed", "get_rows"], 1e-6, "a copy; formats that multiply twice may round twice"),
    line(&["kv_write"], 2e-6, "the same rounding of the same rows; q8_0 scales may differ in their last bit"),
    line(
        &["rope"],
        2e-6,
        "one table of f32 cosines and sines; a product, a difference and the product's contraction",
    ),
    line(&["add", "mul"], 2e-7, "one rounding to f32"),
    line(
        &["rms_norm", "layer_norm"],
        3e-6,
        "a sum of up to 8192 squares in f32 and one reciprocal square root",
    ),
    line(PRODUCTS, 1e-5, "sums of up to 16384 products in f32, in another order"),
    line(
        &["attention", "attention_scores", "attention_softmax"],
        2e-5,
        "f32 sums, and exp of a device's own",
    ),
    line(&["router"], 1e-5, "exp of a device's own, and a division"),
    line(&["gated_act", "pointwise"], 1e-5, "exp of a device's own, and a division"),
    line(&["expert_combine"], 3e-6, "sums of up to 32 products in f32"),
    line(ANY, 1e-6, "a few roundings to f32"),
];

/// Ops that round what they read, where it was made inside their own launch: it could not be replaced, so a last bit may
/// move a rounding.
const MOVED: &[Line] = &[
    Line {
        kv_type: Some(KvType::F16),
        ..line(
            &["kv_write"],
            5e-4,
            "a last bit moves an element's rounding by one unit, up to 2^-10 of it; a row's largest element may be half of its length",
        )
    },
    Line {
        kv_type: Some(KvType::Q8_0),
        ..line(&["kv_write"], 3e-3, "a last bit moves a row's 8-bit step, in a few elements of a hundred")
    },
    Line {
        activations: Some(Activations::Q8),
        ..line(
            PRODUCTS,
            5e-3,
            "a last bit moves an 8-bit step of the activations: 1/127 of the largest in its row",
        )
    },
    Line {
        activations: Some(Activations::F16),
        ..line(PRODUCTS, 3e-4, "a last bit moves the rounding of an activation by one unit of 2^-11")
    },
];

const FREE: &[Line] = &[
    Line {
        activations: Some(Activations::Q8),
        relation: Some(Relation::Different),
        ..line(ANY, 1.5e-1, "8-bit activations against none, grown through every layer before")
    },
    Line {
        activations: Some(Activations::F16),
        relation: Some(Relation::Different),
        ..line(ANY, 2e-2, "16-bit activations against none, grown through every layer before")
    },
    Line {
        kv_type: Some(KvType::Q8_0),
        relation: Some(Relation::Different),
        ..line(ANY, 1e-1, "8-bit K and V rows against none, grown through every layer before")
    },
    Line {
        kv_type: Some(KvType::F16),
        relation: Some(Relation::Different),
        ..line(ANY, 1e-2, "16-bit K and V rows against none, grown through every layer before")
    },
    Line {
        activations: Some(Activations::Q8),
        ..line(
            ANY,
            3e-2,
            "a last-bit difference moves an 8-bit step; steps moved in one layer move more in the next",
        )
    },
    Line {
        activations: Some(Activations::F16),
        ..line(ANY, 5e-3, "a last-bit difference moves a 16-bit rounding, and so on through the layers")
    },
    Line {
        kv_type: Some(KvType::Q8_0),
        ..line(ANY, 3e-2, "a last-bit difference moves an 8-bit step of K and V rows")
    },
    line(
        ANY,
        1e-3,
        "f32 sums in another order, and K and V rows that round to the neighbour, through every layer",
    ),
];

fn find(table: &[Line], stem: &str, side: &ExecutableInfo, relation: Relation) -> Option<Tolerance> {
    let fits = |l: &&Line| {
        l.backend.is_none_or(|b| b == side.backend)
            && (l.stems.is_empty() || l.stems.contains(&stem))
            && l.activations.is_none_or(|a| a == side.activations)
            && l.relation.is_none_or(|r| r == relation)
            && l.kv_type.is_none_or(|k| k == side.kv_type)
    };
    table.iter().find(fits).map(|l| l.tolerance)
}

/// What holds where no line of a table fits.
const EXACT: Tolerance = Tolerance { value: 0.0, cause: "no line of the table fits: equal bits are wanted" };

/// The limit of an op's own error, by its stem.
#[must_use]
pub fn local(stem: &str, side: &ExecutableInfo, relation: Relation) -> Tolerance {
    find(LOCAL, stem, side, relation).unwrap_or(EXACT)
}

/// The limit of an op that rounds an input made inside its own launch, where that is wider than [`local`].
#[must_use]
pub fn moved(stem: &str, side: &ExecutableInfo, relation: Relation) -> Tolerance {
    let local = local(stem, side, relation);
    find(MOVED, stem, side, relation).filter(|t| t.value > local.value).unwrap_or(local)
}

/// The limit of a stage in a free run of two sides that are defined to the bit (`Backend::has_reference_bits`).
pub const SAME_BITS: Tolerance = Tolerance {
    value: 0.0,
    cause: "8-bit products, attention and all between them are defined to the bit on both sides",
};

/// The limit of a stage's relative L2 in a free run.
#[must_use]
pub fn free(side: &ExecutableInfo, relation: Relation) -> Tolerance {
    find(FREE, "", side, relation).unwrap_or(EXACT)
}
