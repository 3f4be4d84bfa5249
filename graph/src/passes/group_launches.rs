//! Partitions the nodes into launches by a backend's patterns: fusion is grouping.
//!
//! Production nodes are matched in execution order, the first pattern that fits taking its run; a node that no pattern
//! takes is a launch of its own, named by its op's stem. Recomputed nodes (they feed only taps) are launches of their
//! own, behind the launch that makes the last of their inputs, so that they never change how production is grouped.

use crate::ir::{Graph, LaunchPattern, LayerIdx, Node, NodeId, Op, ValueId};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
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

    let mut rest = production.as_slice();
    while let Some(first) = rest.first() {
        let grouped = patterns.iter().find_map(|pattern| {
            let phases = pattern.matches(graph, rest)?;
            (!phases.iter().flatten().any(|n| alone(n))).then_some((pattern.name, phases))
        });
        let (pattern, phases) = grouped.unwrap_or_else(|| (first.op.stem(), vec![vec![*first]]));
        rest = &rest[phases.iter().map(Vec::len).sum::<usize>()..];
        add(&mut launches, &mut computed, pattern, &phases, false);
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
