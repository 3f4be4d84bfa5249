//! Where the values of a step lie on the device.

use super::driver::{DeviceBuffer, Param};
use moe_run_graph::ir::{StepSizes, ValueId};
use moe_run_graph::passes::Plan;

/// Where the values of a plan live.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    pub plan: &'a Plan,
    pub arena: &'a DeviceBuffer,
    pub inputs: &'a DeviceBuffer,
    /// Words from one step input to the next.
    pub input_stride: usize,
    pub boundary: &'a [DeviceBuffer],
}

impl Values<'_> {
    /// A value's memory and its bytes in a step; `None` where the plan gives it none.
    pub fn place(&self, id: ValueId, sizes: StepSizes) -> Option<(Param, usize)> {
        let graph = &self.plan.graph;
        let bytes = 4 * graph.value(id).shape.elems(sizes);
        if let Some(i) = self.input_index(id) {
            return Some((self.inputs.slice((i * self.input_stride * 4) as u64, bytes as u64), bytes));
        }
        if let Some(i) = graph.boundary.iter().position(|b| *b == id) {
            return Some((self.boundary[i].slice(0, bytes as u64), bytes));
        }
        let slot = self.plan.memory.slot(id)?;
        Some((self.arena.slice(slot.offset_bytes as u64, bytes as u64), bytes))
    }

    fn input_index(&self, id: ValueId) -> Option<usize> {
        let i = &self.plan.graph.inputs;
        [i.tokens, i.positions, i.sequence, i.kv_slots, i.logits_rows].iter().position(|v| *v == id)
    }
}
