//! Partitions the nodes into launches by a backend's patterns: fusion is grouping.
//!
//! Patterns take production nodes by what flows between them, the best pattern first, each from every anchor; a node that no
//! pattern takes is a launch of its own, named by its op's stem. Launches stand behind those whose values they read.
//! Recomputed nodes (they feed only taps) are launches of their own, behind the launch that makes the last of their inputs,
//! so that they never change how production is grouped.

use crate::ir::pattern::Matcher;
use crate::ir::{Graph, LaunchPattern, LayerIdx, Node, NodeId, Op, ValueId};
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fmt;

/// A launch's place in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct LaunchId(pub u32);

impl LaunchId {
    /// The position in the plan.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for LaunchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "launch {}", self.0)
    }
}

/// Nodes that run as one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Launch {
    /// Its place in the plan.
    pub id: LaunchId,
    /// The pattern's name, or the op's stem.
    pub pattern: &'static str,
    /// Nodes by phase, in execution order.
    pub phases: Vec<Vec<NodeId>>,
    /// Taps whose value is complete when this launch is.
    pub taps: Vec<NodeId>,
    /// The layer; `None` for the whole model's.
    pub layer: Option<LayerIdx>,
    /// Feeds nothing but taps.
    pub recomputed: bool,
}

impl Launch {
    /// The nodes, in execution order.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.phases.iter().flatten().copied()
    }

    /// The nodes, counted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.phases.iter().map(Vec::len).sum()
    }

    /// Whether it holds nothing; never true in a plan.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The launches of a graph, in execution order. No group takes a node that is to be `alone`.
#[must_use]
pub fn group_launches(
    graph: &Graph,
    patterns: &[LaunchPattern],
    alone: &dyn Fn(&Node) -> bool,
) -> Vec<Launch> {
    let feeds_outputs = graph.feeds_outputs();
    let is_tap = |n: &Node| matches!(n.op, Op::Tap { .. });
    let side = |production: bool| -> Vec<&Node> {
        let nodes = graph.nodes.iter().zip(&feeds_outputs);
        nodes.filter(|(n, feeds)| **feeds == production && !is_tap(n)).map(|(n, _)| n).collect()
    };
    let production = side(true);
    let mut recomputed = side(false);
    let mut computed: HashSet<ValueId> =
        graph.values.iter().filter(|v| v.producer.is_none()).map(|v| v.id).collect();
    let mut launches = Vec::new();

    let mut matcher = Matcher::new(graph, production.iter().copied().filter(|n| !alone(n)));
    let mut units = Units::new(&production);
    for pattern in patterns {
        for anchor in &production {
            if !matcher.is_free(anchor) {
                continue;
            }
            let found = pattern.find(&matcher, anchor);
            if let Some(nodes) = found.into_iter().find(|nodes| units.join(nodes, pattern.name)) {
                matcher.take(&nodes);
            }
        }
    }
    for (pattern, nodes) in units.in_order() {
        add(&mut launches, &mut computed, pattern, &[nodes], false);
        while let Some(i) = recomputed.iter().position(|n| n.inputs.iter().all(|v| computed.contains(v))) {
            let node = recomputed.remove(i);
            add(&mut launches, &mut computed, node.op.stem(), &[vec![node]], true);
        }
    }
    for node in recomputed {
        add(&mut launches, &mut computed, node.op.stem(), &[vec![node]], true);
    }
    attach_taps(graph, &mut launches);
    launches
}

/// The production nodes in units that are to be launches; at first each by itself.
struct Units<'g> {
    nodes: &'g [&'g Node],
    /// By the node's id: its place in `nodes`.
    place: HashMap<NodeId, usize>,
    /// By place: the places of the nodes that read what it makes.
    readers: Vec<Vec<usize>>,
    /// By place: its unit.
    unit: Vec<usize>,
    /// The places of each unit, ascending, and the pattern of a group.
    units: Vec<(Option<&'static str>, Vec<usize>)>,
}

impl<'g> Units<'g> {
    fn new(nodes: &'g [&'g Node]) -> Units<'g> {
        let place: HashMap<NodeId, usize> = nodes.iter().enumerate().map(|(i, n)| (n.id, i)).collect();
        let makers: HashMap<ValueId, usize> =
            nodes.iter().enumerate().flat_map(|(i, n)| n.outputs.iter().map(move |v| (*v, i))).collect();
        let mut readers = vec![Vec::new(); nodes.len()];
        for (i, node) in nodes.iter().enumerate() {
            for maker in node.inputs.iter().filter_map(|v| makers.get(v)) {
                readers[*maker].push(i);
            }
        }
        let units = (0..nodes.len()).map(|i| (None, vec![i])).collect();
        Units { nodes, place, readers, unit: (0..nodes.len()).collect(), units }
    }

    /// Makes one unit of nodes of one layer, if they then can still be executed: nothing that one of them needs may come of
    /// another by a way that leads outside.
    fn join(&mut self, nodes: &[NodeId], pattern: &'static str) -> bool {
        let places: Option<Vec<usize>> = nodes.iter().map(|id| self.place.get(id).copied()).collect();
        let Some(mut places) = places else { return false };
        places.sort_unstable();
        let Some(&first) = places.first() else { return false };
        let layer = self.nodes[first].layer;
        if places.iter().any(|i| self.nodes[*i].layer != layer) || self.leads_back(&places) {
            return false;
        }
        for place in &places {
            let old = std::mem::replace(&mut self.unit[*place], first);
            self.units[old] = (None, Vec::new());
        }
        self.units[first] = (Some(pattern), places);
        true
    }

    /// Whether a way leads from these places to others and back.
    fn leads_back(&self, places: &[usize]) -> bool {
        let mut seen = vec![false; self.units.len()];
        let outside = |place: &&usize| places.binary_search(place).is_err();
        let mut next: Vec<usize> =
            places.iter().flat_map(|i| &self.readers[*i]).filter(outside).copied().collect();
        while let Some(place) = next.pop() {
            let unit = self.unit[place];
            if std::mem::replace(&mut seen[unit], true) {
                continue;
            }
            for reader in self.units[unit].1.iter().flat_map(|i| &self.readers[*i]) {
                if places.binary_search(reader).is_ok() {
                    return true;
                }
                next.push(*reader);
            }
        }
        false
    }

    /// The units, each behind those whose values it reads; where several could be next, that with the earliest node.
    fn in_order(&self) -> Vec<(&'static str, Vec<&'g Node>)> {
        let mut waits = vec![0usize; self.units.len()];
        for (place, readers) in self.readers.iter().enumerate() {
            for reader in readers.iter().filter(|r| self.unit[**r] != self.unit[place]) {
                waits[self.unit[*reader]] += 1;
            }
        }
        let is_there = |unit: &usize| !self.units[*unit].1.is_empty();
        let ready = (0..self.units.len()).filter(is_there).filter(|u| waits[*u] == 0);
        // A unit is numbered by its first place.
        let mut ready: BinaryHeap<Reverse<usize>> = ready.map(Reverse).collect();
        let mut order = Vec::new();
        while let Some(Reverse(unit)) = ready.pop() {
            let (pattern, places) = &self.units[unit];
            let nodes: Vec<&Node> = places.iter().map(|i| self.nodes[*i]).collect();
            order.push((pattern.unwrap_or_else(|| nodes[0].op.stem()), nodes));
            for reader in places.iter().flat_map(|i| &self.readers[*i]) {
                let reader = self.unit[*reader];
                if reader != unit {
                    waits[reader] -= 1;
                    if waits[reader] == 0 {
                        ready.push(Reverse(reader));
                    }
                }
            }
        }
        order
    }
}

fn add(
    launches: &mut Vec<Launch>,
    computed: &mut HashSet<ValueId>,
    pattern: &'static str,
    phases: &[Vec<&Node>],
    recomputed: bool,
) {
    computed.extend(phases.iter().flatten().flat_map(|n| n.outputs.iter().copied()));
    launches.push(Launch {
        id: LaunchId(launches.len() as u32),
        pattern,
        layer: phases.iter().flatten().next().and_then(|n| n.layer),
        phases: phases.iter().map(|p| p.iter().map(|n| n.id).collect()).collect(),
        taps: Vec::new(),
        recomputed,
    });
}

fn attach_taps(graph: &Graph, launches: &mut [Launch]) {
    let launch_of: HashMap<NodeId, usize> = launches
        .iter()
        .enumerate()
        .flat_map(|(i, l)| l.nodes().map(move |n| (n, i)).collect::<Vec<_>>())
        .collect();
    for (tap, _) in graph.taps() {
        let producers = tap.inputs.iter().filter_map(|v| graph.value(*v).producer);
        // A tap of boundary inputs alone is complete before anything runs: the first launch delivers it.
        let last = producers.filter_map(|p| launch_of.get(&p)).max().copied().unwrap_or(0);
        if let Some(launch) = launches.get_mut(last) {
            launch.taps.push(tap.id);
        }
    }
}
