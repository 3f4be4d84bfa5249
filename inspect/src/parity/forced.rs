//! The forced run: every launch of this side is given the other side's inputs, cached K and V rows and routing included,
//! so that what it gets wrong is its own.
//!
//! A value is replaced before the launch that reads it; the outputs of a launch are compared as soon as it is done, node
//! by node in the order of execution. Values that never leave a launch are compared where a tap shows them.

use super::local::{LocalError, Operands, RowNorms, local_error};
use super::not_finite::take_as_equal;
use super::report::OpCheck;
use super::source::{Source, elements};

use super::values::{StepPlace, ValueMap};
use super::{ParityError, carry};
use crate::taps::flips::{Logits, align, flips};
use crate::tolerance::{self, Relation};
use moe_run_graph::ir::{DType, Graph, Node, NodeId, Op, ValueId};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    Backend, CompileOptions, ExecutableInfo, HostTensor, Observer, TensorData, ValueAccess, WeightSource,
};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// The relative difference of router logits that is granted when both sides had the same logits: two gate values may
/// round to the same float.
const LOGIT_NOISE: f64 = 1e-6;

/// Replaces inputs and checks outputs.
pub(super) struct Forced<'a> {
    pub source: Source<'a>,
    pub map: ValueMap<'a>,
    pub backend: &'a dyn Backend,
    pub info: ExecutableInfo,
    /// The options that give what `info` says: the kernels' names are those of it.
    pub arithmetic: CompileOptions,
    pub relation: Relation,
    /// Intact ones.
    pub weights: &'a dyn WeightSource,
    pub graph: &'a Graph,
    pub norms: RowNorms,
    pub checks: Vec<OpCheck>,
    pub index: HashMap<NodeId, usize>,
    /// The first beyond its tolerance.
    pub first_beyond: Option<OpCheck>,
    /// An input of the launch in progress could not be replaced.
    pub unforced: bool,
    /// This side's and the other's ids, between the two outputs of a router.
    pub router_ids: Option<(Vec<f32>, Vec<f32>)>,
}

/// Where the step in progress is: one sequence, so its slots end at S.
fn place(values: &dyn ValueAccess) -> StepPlace {
    let sizes = values.sizes();
    StepPlace { first_position: sizes.cached.saturating_sub(sizes.tokens) as u32, sizes }
}

impl Forced<'_> {
    fn force(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        values: &mut dyn ValueAccess,
    ) -> Result<(), ParityError> {
        self.unforced = false;
        let step = place(values);
        let inside: HashSet<NodeId> = launch.nodes.iter().copied().collect();
        let mut done: HashSet<ValueId> = HashSet::new();
        for node in plan.launch_nodes(launch) {
            for &input in &node.inputs {
                let value = plan.graph.value(input);
                let Some(producer) = value.producer else {
                    // What comes from outside of all launches, such as shared experts, cannot be replaced.
                    self.unforced |= plan.graph.boundary.contains(&input);
                    continue;
                };
                if inside.contains(&producer) || !done.insert(input) {
                    continue;
                }
                let Some(tensor) = self.map.read(&mut self.source, input, step)? else {
                    self.unforced = true;
                    continue;
                };
                match value.state {
                    Some(state) => {
                        let rows = elements(&tensor).into_owned();
                        values.write_state(state, step.first_position as usize, &rows)?;
                    }
                    None => values.write(input, &tensor)?,
                }
            }
        }
        Ok(())
    }

    fn check(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        values: &mut dyn ValueAccess,
    ) -> Result<(), ParityError> {
        let step = place(values);
        for node in plan.launch_nodes(launch) {
            for &output in &node.outputs {
                let value = plan.graph.value(output);
                if value.dtype != DType::State && !plan.is_stored(output) {
                    continue;
                }
                let Some(other) = self.map.read(&mut self.source, output, step)? else { continue };
                let mine = match value.state {
                    Some(state) => {
                        let first = step.first_position as usize;
                        let rows = values.read_state(state, first..first + step.sizes.tokens)?;
                        HostTensor::f32(other.shape.clone(), rows)
                    }
                    None => values.read(output)?,
                };
                self.check_output(plan, launch, node, output, &mine, other, step)?;
            }
        }
        Ok(())
    }

    fn check_output(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        node: &Node,
        output: ValueId,
        mine: &HostTensor,
        other: HostTensor,
        step: StepPlace,
    ) -> Result<(), ParityError> {
        let mut b = elements(&other).into_owned();
        let mut a = elements(mine).into_owned();
        let mut width = mine.shape.last().copied().unwrap_or(1);
        let error = match &node.op {
            Op::KvWrite { key, .. } => {
                let state = plan.graph.value(output).state.unwrap_or(*key);
                width = plan.graph.state(state).row_elems();
                // What this side's rounding is to make of the other side's rows.
                b.chunks_exact_mut(width).for_each(|row| self.info.kv_type.round_row(row));
                self.error(node, &a, &b, width, None)?
            }
            Op::Router(attrs) if output == node.outputs[0] => {
                let logits = self.map.read(&mut self.source, node.inputs[0], step)?;
                let logits = logits.as_ref().map(elements);
                let logits = logits.as_ref().map(|l| Logits { a: l, b: l, num_experts: attrs.num_experts });
                let found = flips(&a, &b, attrs.num_experts_per_tok, logits, LOGIT_NOISE);
                let wrong = found.iter().filter(|f| !f.near_tie).count();
                // Ids are names: their distance is the share of positions with a wrong choice.
                let value = wrong as f64 / step.sizes.tokens as f64;
                self.router_ids = Some((a, b));
                LocalError { value, relative_l2: value, worst_channel: None }
            }
            Op::Router(attrs) => {
                // Two gate values that round to the same float may come in either order.
                if let Some((mine, theirs)) = self.router_ids.take() {
                    align(&mut b, attrs.num_experts_per_tok, &theirs, &mine);
                }
                self.error(node, &a, &b, width, None)?
            }
            Op::AttentionScores(_) | Op::AttentionSoftmax(_) => {
                hide_unseen(&mut a, step);
                hide_unseen(&mut b, step);
                self.error(node, &a, &b, width, None)?
            }
            Op::MatMul { .. } => {
                let x = self.map.read(&mut self.source, node.inputs[0], step)?;
                let x = x.as_ref().map(elements);
                let operands = x.as_ref().map(|x| Operands { x, ids: None });
                self.error(node, &a, &b, width, operands.as_ref())?
            }
            Op::ExpertMatMul { .. } => {
                let x = self.map.read(&mut self.source, node.inputs[0], step)?;
                let ids = self.map.read(&mut self.source, node.inputs[1], step)?;
                let x = x.as_ref().map(elements);
                let ids = match ids.as_ref().map(|i| &i.data) {
                    Some(TensorData::U32(ids)) => Some(ids.as_slice()),
                    _ => None,
                };
                let operands = x.as_ref().zip(ids).map(|(x, ids)| Operands { x, ids: Some(ids) });
                self.error(node, &a, &b, width, operands.as_ref())?
            }
            Op::RmsNorm { heads, .. } | Op::Rope { heads, .. } => {
                width /= heads.max(&1);
                self.error(node, &a, &b, width, None)?
            }
            Op::Embed { .. }
            | Op::LayerNorm { .. }
            | Op::HeadMatMul { .. }
            | Op::PositionScale(_)
            | Op::MulHeads
            | Op::Attention(_)
            | Op::GivenExperts(_)
            | Op::IndexScores(_)
            | Op::IndexSelect { .. }
            | Op::GatedAct { .. }
            | Op::ExpertCombine
            | Op::CausalConv(_)
            | Op::DeltaGates { .. }
            | Op::DeltaRule(_)
            | Op::SsmScan(_)
            | Op::HyperGates(_)
            | Op::HyperConnect { .. }
            | Op::Compress(_)
            | Op::CompressedAttention(_)
            | Op::Add
            | Op::Mul
            | Op::Pointwise { .. }
            | Op::Concat { .. }
            | Op::Slice { .. }
            | Op::GetRows
            | Op::Tap { .. } => self.error(node, &a, &b, width, None)?,
        };
        self.record(plan, launch, node, output, mine.shape.clone(), &error, step.first_position);
        Ok(())
    }

    fn error(
        &mut self,
        node: &Node,
        a: &[f32],
        b: &[f32],
        width: usize,
        operands: Option<&Operands<'_>>,
    ) -> Result<LocalError, ParityError> {
        let mut b = b.to_vec();
        take_as_equal(a, &mut b);
        let found = local_error(self.graph, self.weights, &mut self.norms, node, a, &b, width, operands)?;
        Ok(found)
    }

    fn record(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        node: &Node,
        output: ValueId,
        shape: Vec<usize>,
        error: &LocalError,
        position: u32,
    ) {
        // Inside a grouped launch a node inherits what the nodes before it rounded.
        let mut made: HashSet<ValueId> = HashSet::new();
        let mut limit = tolerance::local(node.op.stem(), &self.info, self.relation);
        for inner in plan.launch_nodes(launch).take_while(|n| n.id <= node.id) {
            let own = if inner.inputs.iter().any(|v| made.contains(v)) {
                tolerance::moved(inner.op.stem(), &self.info, self.relation)
            } else {
                tolerance::local(inner.op.stem(), &self.info, self.relation)
            };
            limit = if own.value > limit.value { own } else { limit };
            made.extend(&inner.outputs);
        }
        let weight = node.op.weights().first().map(|w| plan.graph.weight(*w));
        let beyond = error.value > limit.value || error.value.is_nan();
        let state = plan.graph.value(output).state;
        let shown = state.and_then(|s| self.map.stored_value(s)).unwrap_or(output);
        let check = OpCheck {
            op: node.path(),
            kind: node.op.stem(),
            layer: node.layer.map(|l| l.index()),
            stage: self.map.stage_of(shown).map(|s| s.0),
            launch: launch.pattern,
            kernel: self.backend.kernel(plan, launch, &self.arithmetic).map(|k| k.name),
            local_error: error.value,
            relative_l2: error.relative_l2,
            worst_channel: error.worst_channel.map(|w| w.0),
            tolerance: limit.value,
            tolerance_cause: limit.cause,
            beyond,
            production: !launch.recomputed,
            forced: !self.unforced,
            tensor: weight.map(|w| w.name.clone()),
            format: weight.map(|w| w.format.name()),
            shape,
            position,
        };
        if beyond && check.production && check.forced && self.first_beyond.is_none() {
            self.first_beyond = Some(check.clone());
        }
        match self.index.get(&node.id) {
            Some(&at) => {
                if error.value > self.checks[at].local_error || error.value.is_nan() {
                    self.checks[at] = check;
                }
            }
            None => {
                self.index.insert(node.id, self.checks.len());
                self.checks.push(check);
            }
        }
    }
}

/// Writes 0 where a position lies after the query: those entries are never compared. `[H, T, S]`.
fn hide_unseen(elems: &mut [f32], step: StepPlace) {
    let (tokens, cached) = (step.sizes.tokens, step.sizes.cached);
    for (row, elems) in elems.chunks_exact_mut(cached.max(1)).enumerate() {
        let position = step.first_position as usize + row % tokens.max(1);
        elems[(position + 1).min(cached)..].fill(0.0);
    }
}

impl Observer for Forced<'_> {
    fn before_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        self.force(plan, launch, values).map_err(carry)
    }

    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        _elapsed: Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        self.check(plan, launch, values).map_err(carry)
    }
}
