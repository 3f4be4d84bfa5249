//! One arena for every value that crosses a launch, is tapped, or is an output, and for what a router by itself
//! makes; for no other.
//!
//! A value lives from the launch that makes it to the last launch that reads it; outputs live to the end. Placement is
//! greedy by size: the largest first, each at the lowest offset where nothing alive at the same time lies.

use super::group_launches::Launch;
use crate::ir::{DType, Graph, NodeId, Op, StepSizes, ValueId};
use serde::Serialize;
use std::collections::HashMap;

/// Buffers start at multiples of this: enough for any device's binding offsets and for a cache line.
pub const ALIGN_BYTES: usize = 256;

/// Where a value lives in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BufferSlot {
    /// The value.
    pub value: ValueId,
    /// From the arena's start.
    pub offset_bytes: usize,
    /// At the plan's largest sizes, unpadded.
    pub size_bytes: usize,
    /// The launch that makes it.
    pub first_launch: usize,
    /// The last launch that needs it.
    pub last_launch: usize,
}

/// The arena.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Slots in the order of their values.
    pub slots: Vec<BufferSlot>,
    /// The arena's size: the peak.
    pub arena_bytes: usize,
    /// What separate buffers would take.
    pub naive_bytes: usize,
}

impl MemoryPlan {
    /// A value's place; `None` if it never leaves its launch (or is a boundary input or a state).
    #[must_use]
    pub fn slot(&self, value: ValueId) -> Option<&BufferSlot> {
        self.slots.binary_search_by_key(&value, |s| s.value).ok().map(|i| &self.slots[i])
    }
}

/// Plans the arena of a grouped graph.
#[must_use]
pub fn plan_memory(graph: &Graph, launches: &[Launch], max_sizes: StepSizes) -> MemoryPlan {
    // A launch, and whether the node is a tap behind it.
    let mut place: HashMap<NodeId, (usize, bool)> = HashMap::new();
    for (l, launch) in launches.iter().enumerate() {
        place.extend(launch.nodes.iter().map(|n| (*n, (l, false))));
        place.extend(launch.taps.iter().map(|n| (*n, (l, true))));
    }
    let mut last_use: HashMap<ValueId, usize> = HashMap::new();
    let mut stored: HashMap<ValueId, bool> = HashMap::new();
    for node in &graph.nodes {
        let Some(&at) = place.get(&node.id) else { continue };
        for input in &node.inputs {
            let producer = graph.value(*input).producer.and_then(|p| place.get(&p));
            *stored.entry(*input).or_default() |= producer.is_some_and(|p| *p != at);
            let last = last_use.entry(*input).or_default();
            *last = at.0.max(*last);
        }
    }
    // A router by itself writes ids and weights, whether both are read or not.
    for node in launches.iter().filter(|l| l.nodes.len() == 1).flat_map(|l| &l.nodes) {
        if let Some(node) = graph.node(*node).filter(|n| matches!(n.op, Op::Router(_))) {
            stored.extend(node.outputs.iter().map(|output| (*output, true)));
        }
    }
    for output in &graph.outputs {
        stored.insert(*output, true);
        last_use.insert(*output, launches.len());
    }

    let mut slots: Vec<BufferSlot> = Vec::new();
    for value in &graph.values {
        let Some(&(first_launch, _)) = value.producer.and_then(|p| place.get(&p)) else { continue };
        if value.dtype == DType::State || !stored.get(&value.id).copied().unwrap_or_default() {
            continue;
        }
        slots.push(BufferSlot {
            value: value.id,
            offset_bytes: 0,
            size_bytes: value.shape.elems(max_sizes) * size_of::<f32>(),
            first_launch,
            last_launch: last_use.get(&value.id).copied().unwrap_or(first_launch).max(first_launch),
        });
    }
    let naive_bytes = slots.iter().map(|s| padded(s.size_bytes)).sum();

    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(slots[*i].size_bytes), slots[*i].value));
    let mut placed: Vec<BufferSlot> = Vec::with_capacity(slots.len());
    for i in order {
        let slot = &mut slots[i];
        let mut neighbours: Vec<&BufferSlot> = placed.iter().filter(|p| alive_together(p, slot)).collect();
        neighbours.sort_by_key(|p| p.offset_bytes);
        let mut offset = 0;
        for neighbour in neighbours {
            if offset + padded(slot.size_bytes) <= neighbour.offset_bytes {
                break;
            }
            offset = offset.max(neighbour.offset_bytes + padded(neighbour.size_bytes));
        }
        slot.offset_bytes = offset;
        placed.push(*slot);
    }
    let arena_bytes = slots.iter().map(|s| s.offset_bytes + padded(s.size_bytes)).max().unwrap_or(0);
    MemoryPlan { slots, arena_bytes, naive_bytes }
}

/// Rounded up to the alignment.
fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN_BYTES)
}

/// Whether two values are needed in the same launch.
pub(super) fn alive_together(a: &BufferSlot, b: &BufferSlot) -> bool {
    a.first_launch <= b.last_launch && b.first_launch <= a.last_launch
}
