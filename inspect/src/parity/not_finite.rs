//! Values that are not finite: where they begin in the free run, and from which weight they come.
//!
//! What is not finite on both sides is no op's fault: the model computes it. It is no proof of anything behind it either, so the
//! report says where it begins. Input: the first stage with such values. Output: [`NotFinite`]. Absent: a look through all
//! weights, which is `moe-run inspect --check`.

use super::report::NotFinite;
use moe_run_graph::ir::{Graph, Stage, ValueId, WeightId};
use moe_run_runtime::executable::WeightSource;
use std::collections::{BTreeSet, HashSet};

/// Makes `b` what `a` is where neither is finite. Whether such a sum is NaN or an infinity depends on the order of its parts
/// (infinities of both signs, or times 0), which no definition fixes.
pub(super) fn take_as_equal(a: &[f32], b: &mut [f32]) {
    for (b, a) in b.iter_mut().zip(a) {
        if !b.is_finite() && !a.is_finite() {
            *b = *a;
        }
    }
}

/// The first stage of a run, in the order of execution, that holds values that are not finite.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beginning {
    pub stage: Stage,
    pub layer: Option<usize>,
    /// Such values of the judged side in it.
    pub values: usize,
    /// The other side has them at the same places.
    pub on_both_sides: bool,
}

impl Beginning {
    /// Names the weights that are not finite among those between this stage and the `finite` ones before it.
    pub(super) fn describe(
        self,
        graph: &Graph,
        weights: &dyn WeightSource,
        finite: impl Fn(Stage, Option<usize>) -> bool,
    ) -> NotFinite {
        let is_here = |stage, layer| stage == self.stage && layer == self.layer;
        let mut known: HashSet<ValueId> = HashSet::new();
        let mut wanted: Vec<ValueId> = Vec::new();
        for (node, stage) in graph.taps() {
            let layer = node.layer.map(|l| l.index());
            if is_here(stage, layer) {
                wanted.extend(&node.inputs);
            } else if finite(stage, layer) {
                known.extend(&node.inputs);
            }
        }
        let mut read: BTreeSet<WeightId> = BTreeSet::new();
        while let Some(value) = wanted.pop() {
            let producer = graph.value(value).producer.and_then(|p| graph.node(p));
            if let (true, Some(node)) = (known.insert(value), producer) {
                read.extend(node.op.weights());
                wanted.extend(&node.inputs);
            }
        }
        let damaged = |id: &WeightId| {
            let weight = graph.weight(*id);
            let bytes = weights.weight(weight).unwrap_or_default();
            (!weight.format.non_finite(bytes).is_clean()).then(|| weight.name.clone())
        };
        NotFinite {
            stage: self.stage,
            layer: self.layer,
            values: self.values,
            on_both_sides: self.on_both_sides,
            weights: read.iter().filter_map(damaged).collect(),
        }
    }
}
