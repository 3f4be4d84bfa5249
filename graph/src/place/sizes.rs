//! What each layer takes of a device's memory.

use crate::ir::{Graph, Node, StateDecl, WeightDecl, WeightId};
use std::collections::BTreeSet;

/// Bytes of a graph by layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// Weights and states of each layer.
    pub layers: Vec<u64>,
    /// What comes before the first layer: the embedding.
    pub first: u64,
    /// What comes behind the last: the norm and lm_head. A table that is both counts in both.
    pub last: u64,
    /// What every device needs beside: values between launches, scratch.
    pub working: u64,
}

/// Bytes of a weight as the file has them.
#[must_use]
pub fn weight_bytes(decl: &WeightDecl) -> u64 {
    let (cols, rows) = match decl.shape.split_last() {
        Some((cols, rows)) => (*cols, rows.iter().product::<usize>()),
        None => (0, 0),
    };
    (decl.format.row_bytes(cols).unwrap_or(0) as u64).saturating_mul(rows as u64)
}

impl Sizes {
    /// Counts a graph's; `state_bytes` is what a state takes, `working` what every device needs beside.
    #[must_use]
    pub fn of(graph: &Graph, state_bytes: &dyn Fn(&StateDecl) -> u64, working: u64) -> Sizes {
        let first_layer = graph.nodes.iter().position(|node| node.layer.is_some()).unwrap_or(0);
        let weights = |is_in: &dyn Fn(usize, &Node) -> bool| -> u64 {
            let nodes = graph.nodes.iter().enumerate().filter(|(i, node)| is_in(*i, node));
            let ids: BTreeSet<WeightId> = nodes.flat_map(|(_, node)| node.op.weights()).collect();
            ids.into_iter().map(|id| weight_bytes(graph.weight(id))).sum()
        };
        let mut of_layer = vec![BTreeSet::new(); graph.num_layers];
        for node in &graph.nodes {
            if let Some(ids) = node.layer.and_then(|layer| of_layer.get_mut(layer.index())) {
                ids.extend(node.op.weights());
            }
        }
        let mut layers: Vec<u64> = of_layer
            .into_iter()
            .map(|ids| ids.into_iter().map(|id| weight_bytes(graph.weight(id))).sum())
            .collect();
        for state in &graph.states {
            if let Some(layer) = layers.get_mut(state.layer.index()) {
                *layer = layer.saturating_add(state_bytes(state));
            }
        }
        Sizes {
            layers,
            first: weights(&|i, node| node.layer.is_none() && i < first_layer),
            last: weights(&|i, node| node.layer.is_none() && i >= first_layer),
            working,
        }
    }

    /// Everything on one device.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.layers.iter().sum::<u64>() + self.first + self.last + self.working
    }
}
