//! Cuts a lowered graph into segments, each of which runs on a device of its own, and puts the plans of all of them together
//! again.
//!
//! Input: a graph and, for each of its nodes, the segment that runs it. Output: [`Segment`]s, graphs by themselves: what comes
//! from earlier segments are boundary inputs, what goes to later ones are outputs. Nodes and values keep the model's ids, so that
//! a node is the same in every dump, trace and report; weights and states are numbered anew, since each device holds its own
//! alone. Deliberately absent: which device runs what, which is [`crate::place`]'s.

use super::{BufferSlot, Launch, LaunchId, MemoryPlan, Plan};
use crate::ir::{Graph, Node, NodeId, StateId, StepSizes, ValueId, WeightId};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A graph that cannot be cut there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Two segments use one state.
    #[error(
        "{node} reads a cache that {other} keeps: both must be on one device; wanted no cut between them (moe-run graph shows \
         both)"
    )]
    SharedState {
        /// The node that reads it.
        node: String,
        /// Another node of it, in an earlier segment.
        other: String,
    },
    /// A segment would need what a later one makes.
    #[error("{node} reads {value}, which a later segment makes: wanted segments in the order of execution")]
    Backwards {
        /// The node.
        node: String,
        /// What it reads.
        value: ValueId,
    },
    /// As many places as nodes are wanted, and every segment needs a node.
    #[error(
        "{found} places for {nodes} nodes in {segments} segments: wanted one for each node, and a node in each segment"
    )]
    Places {
        /// Places.
        found: usize,
        /// Nodes.
        nodes: usize,
        /// Segments.
        segments: usize,
    },
}

/// A part of a graph that runs by itself.
#[derive(Debug, Clone)]
pub struct Segment {
    /// Its nodes. Outputs of the whole graph come first among its outputs.
    pub graph: Graph,
    /// Of each of its states, by its id here: the id in the whole graph.
    pub states: Vec<StateId>,
}

/// A value that one segment makes and others read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crossing {
    /// The value.
    pub value: ValueId,
    /// The segment that makes it.
    pub from: usize,
    /// Which of that segment's outputs it is.
    pub output: usize,
    /// The segments that read it, ascending.
    pub to: Vec<usize>,
}

/// The segment of each node where layer l is in segment `layers[l]`: what comes before the first layer goes with it, what
/// comes behind the last with that.
#[must_use]
pub fn places_by_layer(graph: &Graph, layers: &[usize]) -> Vec<usize> {
    let first_layer = graph.nodes.iter().position(|node| node.layer.is_some()).unwrap_or(0);
    let (first, last) = (layers.first().copied().unwrap_or(0), layers.last().copied().unwrap_or(0));
    let place = |(i, node): (usize, &Node)| match node.layer {
        Some(layer) => layers.get(layer.index()).copied().unwrap_or(last),
        None if i < first_layer => first,
        None => last,
    };
    graph.nodes.iter().enumerate().map(place).collect()
}

/// For each layer whether a cut may be made in front of it: not where a layer behind it reads what one before it keeps.
#[must_use]
pub fn cuts(graph: &Graph) -> Vec<bool> {
    let mut free = vec![true; graph.num_layers];
    let mut layers: HashMap<StateId, (usize, usize)> = HashMap::new();
    for node in &graph.nodes {
        let Some(layer) = node.layer.map(|l| l.index()) else { continue };
        for state in states_of(graph, node) {
            let (first, last) = layers.entry(state).or_insert((layer, layer));
            (*first, *last) = (layer.min(*first), layer.max(*last));
        }
    }
    for (first, last) in layers.into_values() {
        free.iter_mut().take(last + 1).skip(first + 1).for_each(|cut| *cut = false);
    }
    free
}

/// Every state that a node reads or writes.
fn states_of(graph: &Graph, node: &Node) -> BTreeSet<StateId> {
    let mut states = BTreeSet::new();
    node.op.clone().for_each_id(&mut |_| {}, &mut |state| {
        states.insert(*state);
    });
    let values = node.inputs.iter().chain(&node.outputs);
    states.extend(values.filter_map(|value| graph.value(*value).state));
    states
}

/// Cuts a graph; node i is in segment `places[i]`.
///
/// # Errors
/// [`SegmentError`] where a state would be in two segments, or a value come from a later one.
pub fn segments(graph: &Graph, places: &[usize]) -> Result<Vec<Segment>, SegmentError> {
    let count = places.iter().max().map_or(0, |last| last + 1);
    let is_used = |segment: usize| places.contains(&segment);
    if places.len() != graph.nodes.len() || !(0..count).all(is_used) {
        let (found, nodes) = (places.len(), graph.nodes.len());
        return Err(SegmentError::Places { found, nodes, segments: count });
    }
    check(graph, places)?;
    let maker: HashMap<ValueId, usize> = makers(graph, places);
    let segment = |number: usize| {
        let nodes: Vec<Node> = graph
            .nodes
            .iter()
            .zip(places)
            .filter(|(_, place)| **place == number)
            .map(|(node, _)| node.clone())
            .collect();
        let is_foreign = |value: &ValueId| maker.get(value).is_some_and(|of| *of != number);
        let given: BTreeSet<ValueId> =
            nodes.iter().flat_map(|node| node.inputs.iter().copied()).filter(is_foreign).collect();
        let gives: BTreeSet<ValueId> = graph
            .nodes
            .iter()
            .zip(places)
            .filter(|(_, place)| **place != number)
            .flat_map(|(node, _)| node.inputs.iter().copied())
            .filter(|value| maker.get(value) == Some(&number))
            .collect();
        let mut outputs: Vec<ValueId> =
            graph.outputs.iter().copied().filter(|v| maker.get(v) == Some(&number)).collect();
        let crossing: Vec<ValueId> = gives.into_iter().filter(|v| !outputs.contains(v)).collect();
        outputs.extend(crossing);
        renumbered(graph, nodes, given, outputs)
    };
    Ok((0..count).map(segment).collect())
}

/// The segment that makes each value.
fn makers(graph: &Graph, places: &[usize]) -> HashMap<ValueId, usize> {
    let nodes = graph.nodes.iter().zip(places);
    nodes.flat_map(|(node, place)| node.outputs.iter().map(move |value| (*value, *place))).collect()
}

fn check(graph: &Graph, places: &[usize]) -> Result<(), SegmentError> {
    let maker = makers(graph, places);
    let mut keeper: HashMap<StateId, (usize, &Node)> = HashMap::new();
    for (node, place) in graph.nodes.iter().zip(places) {
        for state in states_of(graph, node) {
            let (of, other) = keeper.entry(state).or_insert((*place, node));
            if of != place {
                return Err(SegmentError::SharedState { node: node.path(), other: other.path() });
            }
        }
        for value in &node.inputs {
            if maker.get(value).is_some_and(|of| of > place) {
                return Err(SegmentError::Backwards { node: node.path(), value: *value });
            }
        }
    }
    Ok(())
}

/// A graph of some nodes that declares their weights and states alone.
fn renumbered(
    graph: &Graph,
    mut nodes: Vec<Node>,
    given: BTreeSet<ValueId>,
    outputs: Vec<ValueId>,
) -> Segment {
    let (mut weights, mut states) = (BTreeMap::<WeightId, WeightId>::new(), BTreeMap::new());
    for node in &mut nodes {
        node.op.for_each_id(
            &mut |weight| {
                weights.insert(*weight, *weight);
            },
            &mut |_| {},
        );
        for state in states_of(graph, node) {
            states.insert(state, state);
        }
    }
    weights.values_mut().zip(0..).for_each(|(own, number)| *own = WeightId(number));
    states.values_mut().zip(0..).for_each(|(own, number)| *own = StateId(number));
    for node in &mut nodes {
        node.op.for_each_id(
            &mut |weight| *weight = weights.get(weight).copied().unwrap_or(*weight),
            &mut |state| *state = states.get(state).copied().unwrap_or(*state),
        );
    }
    let mut segment = graph.clone();
    segment.left_out.clear();
    segment.is_part_of_quantized = graph.is_quantized();
    let own_weight = |(model, own): (&WeightId, &WeightId)| {
        let mut decl = graph.weight(*model).clone();
        decl.id = *own;
        decl
    };
    segment.weights = weights.iter().map(own_weight).collect();
    let own_state = |(model, own): (&StateId, &StateId)| {
        let mut decl = graph.state(*model).clone();
        decl.id = *own;
        decl
    };
    segment.states = states.iter().map(own_state).collect();
    for value in &mut segment.values {
        // Values of other segments stand there for their ids alone.
        value.state = value.state.and_then(|state| states.get(&state).copied());
        if given.contains(&value.id) {
            value.producer = None;
        }
    }
    segment.boundary.extend(given);
    segment.nodes = nodes;
    segment.outputs = outputs;
    Segment { graph: segment, states: states.into_keys().collect() }
}

/// What crosses between segments, in the order of its values.
#[must_use]
pub fn crossings(segments: &[Segment]) -> Vec<Crossing> {
    let mut crossings = Vec::new();
    for (from, segment) in segments.iter().enumerate() {
        for (output, value) in segment.graph.outputs.iter().enumerate() {
            let reads = |other: &&(usize, &Segment)| other.1.graph.boundary.contains(value);
            let later = segments.iter().enumerate().skip(from + 1).collect::<Vec<_>>();
            let to: Vec<usize> = later.iter().filter(reads).map(|(i, _)| *i).collect();
            if !to.is_empty() {
                crossings.push(Crossing { value: *value, from, output, to });
            }
        }
    }
    crossings.sort_by_key(|c| c.value);
    crossings
}

/// One plan of the plans of all segments, in their order: launches follow each other, arenas stand side by side, and ids are those
/// of the whole graph.
#[must_use]
pub fn merge_plans(graph: &Graph, parts: &[&Plan]) -> Plan {
    let kept: HashSet<NodeId> = parts.iter().flat_map(|p| p.graph.nodes.iter().map(|n| n.id)).collect();
    let mut graph = graph.clone();
    graph.nodes.retain(|node| kept.contains(&node.id));
    let (mut launches, mut slots) = (Vec::<Launch>::new(), Vec::<BufferSlot>::new());
    let (mut arena_bytes, mut naive_bytes) = (0, 0);
    for part in parts {
        let base = launches.len();
        launches.extend(
            part.launches
                .iter()
                .map(|launch| Launch { id: LaunchId((base + launch.id.index()) as u32), ..launch.clone() }),
        );
        slots.extend(part.memory.slots.iter().map(|slot| BufferSlot {
            offset_bytes: arena_bytes + slot.offset_bytes,
            first_launch: base + slot.first_launch,
            last_launch: base + slot.last_launch,
            ..*slot
        }));
        arena_bytes += part.memory.arena_bytes;
        naive_bytes += part.memory.naive_bytes;
    }
    let mut last_use: HashMap<ValueId, usize> = HashMap::new();
    for (number, launch) in launches.iter().enumerate() {
        for node in launch.nodes.iter().chain(&launch.taps).filter_map(|id| graph.node(*id)) {
            last_use.extend(node.inputs.iter().map(|value| (*value, number)));
        }
    }
    last_use.extend(graph.outputs.iter().map(|value| (*value, launches.len())));
    for slot in &mut slots {
        slot.last_launch = last_use.get(&slot.value).copied().unwrap_or(0).max(slot.last_launch);
    }
    slots.sort_by_key(|slot| slot.value);
    let max_sizes = parts.iter().map(|part| part.max_sizes).reduce(smaller).unwrap_or(StepSizes {
        tokens: 0,
        logits_rows: 0,
        cached: 0,
    });
    Plan { graph, launches, memory: MemoryPlan { slots, arena_bytes, naive_bytes }, max_sizes }
}

fn smaller(a: StepSizes, b: StepSizes) -> StepSizes {
    StepSizes {
        tokens: a.tokens.min(b.tokens),
        logits_rows: a.logits_rows.min(b.logits_rows),
        cached: a.cached.min(b.cached),
    }
}
