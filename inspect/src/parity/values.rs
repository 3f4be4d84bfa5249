//! From the stages of one side to the values that flow in the other: which tap holds which value.
//!
//! Both sides run the same lowered graph, so a value of it is known wherever a tap shows it: alone, as some columns
//! (q, k and v of `qkv_matmul`), as chosen rows (`logits_rows`), or as rows of a state (`k_post_rope`, v).

use super::ParityError;
use super::source::{Key, Source, elements};
use moe_run_graph::ir::{DType, Graph, Op, Stage, StateId, StepSizes, ValueId};
use moe_run_runtime::executable::{HostTensor, TensorData};
use std::collections::HashMap;
use std::ops::Range;

/// Where a value is found.
#[derive(Debug, Clone)]
struct Place {
    stage: Stage,
    layer: Option<usize>,
    /// Columns of the stage, where it holds more than this value.
    columns: Option<Range<usize>>,
}

/// The step that is being run.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepPlace {
    pub first_position: u32,
    pub sizes: StepSizes,
}

/// Every value's place.
#[derive(Debug)]
pub(super) struct ValueMap<'g> {
    graph: &'g Graph,
    places: HashMap<ValueId, Place>,
    /// The value whose rows a state stores.
    state_rows: HashMap<StateId, ValueId>,
}

impl<'g> ValueMap<'g> {
    pub(super) fn new(graph: &'g Graph) -> ValueMap<'g> {
        let mut places = HashMap::new();
        for (node, stage) in graph.taps() {
            let layer = node.layer.map(|l| l.index());
            let mut column = 0;
            for value in &node.inputs {
                let width = graph.value(*value).shape.width().unwrap_or(0);
                let columns = (node.inputs.len() > 1).then(|| column..column + width);
                column += width;
                places.entry(*value).or_insert(Place { stage, layer, columns });
            }
        }
        let mut state_rows = HashMap::new();
        for node in &graph.nodes {
            if let Op::KvWrite { key, value } = node.op {
                state_rows.insert(key, node.inputs[0]);
                if let Some(value) = value {
                    state_rows.insert(value, node.inputs[1]);
                }
            }
        }
        ValueMap { graph, places, state_rows }
    }

    /// The stage that shows a value, and its layer.
    pub(super) fn stage_of(&self, value: ValueId) -> Option<(Stage, Option<usize>)> {
        self.places.get(&value).map(|p| (p.stage, p.layer))
    }

    /// The value whose rows a state stores.
    pub(super) fn stored_value(&self, state: StateId) -> Option<ValueId> {
        self.state_rows.get(&state).copied()
    }

    /// A value as the other side computed it in this step; `None` where no stage of it shows that value.
    pub(super) fn read(
        &self,
        source: &mut Source<'_>,
        value: ValueId,
        step: StepPlace,
    ) -> Result<Option<HostTensor>, ParityError> {
        let decl = self.graph.value(value);
        if decl.dtype == DType::State {
            let stored = decl.state.and_then(|s| self.stored_value(s));
            return stored.map_or(Ok(None), |v| self.read(source, v, step));
        }
        let shape = decl.shape.resolve(step.sizes);
        let Some(place) = self.places.get(&value) else {
            // Rows of a value that is shown: where every row is asked for, they are that value.
            let producer = decl.producer.and_then(|p| self.graph.node(p));
            return match producer {
                Some(node)
                    if matches!(node.op, Op::GetRows) && step.sizes.logits_rows == step.sizes.tokens =>
                {
                    self.read(source, node.inputs[0], step)
                }
                _ => Ok(None),
            };
        };
        let key = Key { stage: place.stage, layer: place.layer, first_position: step.first_position };
        let Some(tensor) = source.get(key, step.sizes.tokens)? else { return Ok(None) };
        let wanted: usize = shape.iter().product();
        let data = match &place.columns {
            None => tensor.data.clone(),
            Some(columns) => {
                let total = wanted / columns.len().max(1);
                let row = tensor.data.len() / total.max(1);
                let rows = elements(&tensor);
                TensorData::F32(
                    rows.chunks_exact(row.max(1))
                        .flat_map(|r| r.get(columns.clone()).unwrap_or_default().to_vec())
                        .collect(),
                )
            }
        };
        if data.len() != wanted {
            return Err(ParityError::Sizes {
                stage: place.stage.path(place.layer),
                found: tensor.shape.clone(),
                wanted: shape,
            });
        }
        let data = match (decl.dtype, data) {
            (DType::U32, TensorData::F32(ids)) => TensorData::U32(ids.iter().map(|id| *id as u32).collect()),
            (_, data) => data,
        };
        Ok(Some(HostTensor { shape, data }))
    }
}
