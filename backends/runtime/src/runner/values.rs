//! What an observer reads and replaces while a step is held.

use super::{Recorder, Step, not_stored, show, wrong};
use crate::error::BackendError;
use crate::executable::{BLOCK_TOKENS, HostTensor, State, TensorData, TensorView, ValueAccess};
use moe_run_graph::ir::{DType, Graph, Op, StateId, StepSizes, ValueId};
use std::ops::Range;

/// A step that waits in front of one of its launches, or behind it.
pub(super) struct StepValues<'a, R: Recorder> {
    pub recorder: &'a mut R,
    pub state: &'a mut R::State,
    pub step: &'a Step<'a>,
    pub launch: usize,
}

impl<R: Recorder> StepValues<'_, R> {
    /// Fails for a value whose memory holds another one by now, or not yet it.
    fn check_alive(&self, value: ValueId) -> Result<(), BackendError> {
        match self.step.plan.memory.slot(value) {
            Some(slot) if self.launch < slot.first_launch || self.launch > slot.last_launch => {
                let detail = format!(
                    "its memory holds it from launch {} to {}, not at {}",
                    slot.first_launch, slot.last_launch, self.launch
                );
                Err(wrong(value, detail))
            }
            _ => Ok(()),
        }
    }

    /// The slots of rows of a state, those that follow each other together.
    fn slots(&self, id: StateId, rows: Range<usize>) -> Result<Vec<Range<usize>>, BackendError> {
        let beyond =
            |capacity: usize| wrong(id, format!("{} rows from {} on, of {capacity}", rows.len(), rows.start));
        if !self.step.plan.graph.state(id).is_per_token() {
            // What a sequence has once is one row.
            let capacity = self.state.max_sequences();
            return if rows.end <= capacity { Ok(vec![rows]) } else { Err(beyond(capacity)) };
        }
        let ring = self.state.rings().get(id.index()).copied().flatten();
        // A state of one sequence alone, whose slots are its positions, is given without blocks.
        let sequence = self.step.input.sequences.first();
        let held = sequence.map_or(usize::MAX, |s| s.blocks.len().saturating_mul(BLOCK_TOKENS));
        let capacity = self.state.capacity_tokens().min(if ring.is_some() { usize::MAX } else { held });
        if rows.end > capacity {
            return Err(beyond(capacity));
        }
        if let Some(ring) = ring {
            let first = ring.first_held(self.step.sizes.cached.max(rows.end));
            if rows.start < first {
                let detail = format!("position {}, and only those from {first} on are held", rows.start);
                return Err(wrong(id, detail));
            }
        }
        let mut slots: Vec<Range<usize>> = Vec::new();
        for position in rows {
            let slot = match (ring, sequence) {
                (Some(ring), _) => ring.slot(sequence.map_or(0, |s| s.place as usize), position),
                (None, Some(sequence)) => sequence.slot(position),
                (None, None) => position,
            };
            match slots.last_mut() {
                Some(last) if last.end == slot => last.end += 1,
                _ => slots.push(slot..slot + 1),
            }
        }
        Ok(slots)
    }
}

impl<R: Recorder> ValueAccess for StepValues<'_, R> {
    fn sizes(&self) -> StepSizes {
        self.step.sizes
    }

    fn read(&mut self, value: ValueId) -> Result<HostTensor, BackendError> {
        let mut tensor = None;
        self.show(value, &mut |view| {
            tensor = Some(view.to_tensor());
            Ok(())
        })?;
        tensor.ok_or_else(|| not_stored(value))
    }

    fn show(
        &mut self,
        value: ValueId,
        look: &mut dyn FnMut(TensorView<'_>) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        self.check_alive(value)?;
        show(self.recorder, self.step.plan, self.step.class, self.step.sizes, value, look)
    }

    fn write(&mut self, value: ValueId, tensor: &HostTensor) -> Result<(), BackendError> {
        write_value(self.recorder, self.step, value, tensor)
    }

    fn read_state(&mut self, state: StateId, rows: Range<usize>) -> Result<Vec<f32>, BackendError> {
        let mut read = Vec::new();
        for slots in self.slots(state, rows)? {
            read.extend(self.recorder.read_state(self.state, state, slots)?);
        }
        Ok(read)
    }

    fn write_state(&mut self, state: StateId, first: usize, rows: &[f32]) -> Result<(), BackendError> {
        let elems = self.step.plan.graph.state(state).row_elems();
        if elems == 0 || !rows.len().is_multiple_of(elems) {
            return Err(wrong(state, format!("{} elements, wanted rows of {elems}", rows.len())));
        }
        let mut rest = rows;
        for slots in self.slots(state, first..first.saturating_add(rows.len() / elems))? {
            let (rows, behind) = rest.split_at(slots.len() * elems);
            self.recorder.write_state(self.state, state, slots.start, rows)?;
            rest = behind;
        }
        Ok(())
    }
}

/// Experts that a router's ids may name.
fn id_limit(graph: &Graph, value: ValueId) -> Option<usize> {
    let producer = graph.value(value).producer.and_then(|node| graph.node(node))?;
    if let Op::Router(attrs) = &producer.op { Some(attrs.num_experts) } else { None }
}

/// Replaces a value of a step, its shape and elements checked. A boundary input that no node of the plan reads may have no place.
pub(super) fn write_value<R: Recorder>(
    recorder: &mut R,
    step: &Step<'_>,
    value: ValueId,
    tensor: &HostTensor,
) -> Result<(), BackendError> {
    let graph = &step.plan.graph;
    let declared = graph.value(value);
    let wanted = declared.shape.resolve(step.sizes);
    if tensor.shape != wanted || tensor.data.len() != wanted.iter().product::<usize>() {
        return Err(wrong(value, format!("shape {:?}, wanted {wanted:?}", tensor.shape)));
    }
    let words: &[u32] = match (&tensor.data, declared.dtype) {
        (TensorData::U32(ids), DType::U32) => ids,
        (TensorData::F32(data), DType::F32) => bytemuck::cast_slice(data),
        (_, wanted) => return Err(wrong(value, format!("elements of another type, wanted {wanted:?}"))),
    };
    if declared.dtype == DType::U32
        && let Some(limit) = id_limit(graph, value)
        && let Some(bad) = words.iter().find(|id| **id as usize >= limit)
    {
        return Err(wrong(value, format!("expert {bad} of {limit}")));
    }
    let is_unread = || declared.producer.is_none() && graph.consumers(value).next().is_none();
    match recorder.write(step.class, step.sizes, value, words)? {
        true => Ok(()),
        false if is_unread() => Ok(()),
        false => Err(not_stored(value)),
    }
}
