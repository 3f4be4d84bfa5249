//! A model's graph, cut into parts that can be run by themselves: the embedding, each layer, the head.

use std::collections::{BTreeSet, HashSet};

use moe_run_graph::ir::{DType, Graph, Node, ValueId};
use moe_run_graph::passes::{TapSelection, drop_unrequested_taps};

use super::SensitivityError;

/// A part of a model.
pub(super) struct Part {
    /// For messages: `layer-3`.
    pub name: String,
    /// Its nodes, with the values from other parts as boundary inputs and those for other parts as outputs. It declares all
    /// weights of the model.
    pub graph: Graph,
    /// Whether what it gives are the logits.
    pub is_head: bool,
}

impl Part {
    /// The tensors that it multiplies with or looks rows up in, each once.
    pub fn matrices<'g>(&self, graph: &'g Graph) -> Vec<&'g str> {
        let mut seen = HashSet::new();
        let tensors = self.graph.nodes.iter().filter_map(|node| node.op.weight_slice()).map(|w| w.tensor);
        tensors.filter(|id| seen.insert(*id)).map(|id| graph.weight(id).name.as_str()).collect()
    }
}

/// Which part a node belongs to: 0 is what comes before the first layer, then the layers, then what comes behind the last.
fn place(graph: &Graph, first_layer: usize, index: usize) -> usize {
    match graph.nodes[index].layer {
        Some(layer) => layer.index() + 1,
        None if index < first_layer => 0,
        None => graph.num_layers + 1,
    }
}

/// The parts of a lowered graph, in order; those without a node are left out.
///
/// # Errors
/// [`SensitivityError::SharedState`].
pub(super) fn parts(lowered: &Graph) -> Result<Vec<Part>, SensitivityError> {
    let graph = drop_unrequested_taps(lowered, &TapSelection::None);
    let first_layer = graph.nodes.iter().position(|node| node.layer.is_some()).unwrap_or(0);
    let places: Vec<usize> = (0..graph.nodes.len()).map(|i| place(&graph, first_layer, i)).collect();
    let mut parts = Vec::new();
    for number in 0..graph.num_layers + 2 {
        let name = match number {
            0 => "the embedding".to_owned(),
            n if n == graph.num_layers + 1 => "the head".to_owned(),
            n => format!("layer-{}", n - 1),
        };
        let is_here = |i: usize| places[i] == number;
        let nodes: Vec<Node> =
            graph.nodes.iter().enumerate().filter(|(i, _)| is_here(*i)).map(|(_, n)| n.clone()).collect();
        if nodes.is_empty() {
            continue;
        }
        let made: HashSet<ValueId> = nodes.iter().flat_map(|node| node.outputs.iter().copied()).collect();
        let read_elsewhere: HashSet<ValueId> = (0..graph.nodes.len())
            .filter(|i| !is_here(*i))
            .flat_map(|i| graph.nodes[i].inputs.iter().copied())
            .collect();
        let inputs = step_inputs(&graph);
        let given: BTreeSet<ValueId> = nodes
            .iter()
            .flat_map(|node| node.inputs.iter().copied())
            .filter(|value| !made.contains(value) && !inputs.contains(value))
            .collect();
        if given.iter().any(|value| graph.value(*value).dtype == DType::State) {
            return Err(SensitivityError::SharedState { part: name });
        }
        let gives = nodes.iter().flat_map(|node| node.outputs.iter().copied());
        let gives = gives.filter(|v| read_elsewhere.contains(v) || graph.outputs.contains(v));
        let gives = gives.filter(|v| graph.value(*v).dtype == DType::F32);
        let outputs: Vec<ValueId> = gives.collect();
        let is_head = outputs.iter().any(|value| graph.outputs.contains(value));
        let mut part = graph.clone();
        for value in &given {
            part.values[value.index()].producer = None;
        }
        part.boundary.extend(given);
        part.nodes = nodes;
        part.outputs = outputs;
        parts.push(Part { name, graph: part, is_head });
    }
    Ok(parts)
}

/// What every step gives.
fn step_inputs(graph: &Graph) -> [ValueId; 5] {
    let i = graph.inputs;
    [i.tokens, i.positions, i.sequence, i.kv_slots, i.logits_rows]
}
