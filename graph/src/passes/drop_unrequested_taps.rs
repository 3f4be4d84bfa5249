//! Keeps the taps that were asked for and the nodes that something still needs.

use crate::ir::{Graph, Op, Stage};
use std::collections::BTreeSet;

/// Which taps a plan keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TapSelection {
    /// None: what production runs.
    #[default]
    None,
    /// Every tap of the graph.
    All,
    /// The listed stages, each with its layer (`None` for a stage of the whole model).
    Some(BTreeSet<(Stage, Option<usize>)>),
}

impl TapSelection {
    /// Whether the tap of a stage and layer stays.
    #[must_use]
    pub fn contains(&self, stage: Stage, layer: Option<usize>) -> bool {
        match self {
            TapSelection::None => false,
            TapSelection::All => true,
            TapSelection::Some(set) => set.contains(&(stage, layer)),
        }
    }

    /// Whether no tap is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            TapSelection::None => true,
            TapSelection::All => false,
            TapSelection::Some(set) => set.is_empty(),
        }
    }
}

impl FromIterator<(Stage, Option<usize>)> for TapSelection {
    fn from_iter<I: IntoIterator<Item = (Stage, Option<usize>)>>(iter: I) -> Self {
        TapSelection::Some(iter.into_iter().collect())
    }
}

/// The graph without the taps that nobody asked for, nor the nodes that fed only those.
#[must_use]
pub fn drop_unrequested_taps(graph: &Graph, selection: &TapSelection) -> Graph {
    let mut live = vec![false; graph.values.len()];
    for output in &graph.outputs {
        live[output.index()] = true;
    }
    let mut kept = Vec::with_capacity(graph.nodes.len());
    for node in graph.nodes.iter().rev() {
        let needed = match &node.op {
            Op::Tap { stage } => selection.contains(*stage, node.layer.map(|l| l.index())),
            // State written in this step is read in later ones.
            op => !op.written_states().is_empty() || node.outputs.iter().any(|v| live[v.index()]),
        };
        if needed {
            for input in &node.inputs {
                live[input.index()] = true;
            }
            kept.push(node.clone());
        }
    }
    kept.reverse();
    let mut graph = graph.clone();
    graph.nodes = kept;
    graph
}
