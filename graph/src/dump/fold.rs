//! Layers of equal structure, so that 48 of them are shown as one.
//!
//! Two layers are of equal structure when their nodes have the same names, ops, attributes and shapes, are connected in
//! the same way, keep the same taps and are grouped into launches in the same way. Tensor formats may differ (real files
//! mix them by layer): a group lists which layers have which.

use super::build::DumpInput;
use super::view::{CostView, LaunchView, LayerGroupView, NodeView, TapView};
use crate::cost::Cost;
use crate::ir::{Graph, ValueId, WeightId};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

/// The layers by structure, in the order of each structure's first layer.
pub(super) fn layer_groups(
    input: &DumpInput<'_>,
    graph: &Graph,
    nodes: &[NodeView],
    launches: &[LaunchView],
    taps: &[TapView],
) -> Vec<LayerGroupView> {
    let mut nodes_of: BTreeMap<usize, Vec<&NodeView>> = BTreeMap::new();
    for node in nodes {
        if let Some(layer) = node.layer {
            nodes_of.entry(layer).or_default().push(node);
        }
    }
    let mut launches_of: BTreeMap<usize, Vec<&LaunchView>> = BTreeMap::new();
    for launch in launches {
        if let Some(layer) = launch.layer {
            launches_of.entry(layer).or_default().push(launch);
        }
    }
    let mut kept_of: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for tap in taps.iter().filter(|t| t.kept) {
        if let Some(layer) = tap.layer {
            kept_of.entry(layer).or_default().push(tap.stage);
        }
    }

    let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
    for (layer, nodes) in &nodes_of {
        let launches = launches_of.get(layer).map_or(&[][..], Vec::as_slice);
        let mut structure = structure(graph, nodes, launches);
        let _ = write!(structure, "{:?}", kept_of.get(layer));
        match groups.iter_mut().find(|(s, _)| *s == structure) {
            Some((_, layers)) => layers.push(*layer),
            None => groups.push((structure, vec![*layer])),
        }
    }
    groups
        .into_iter()
        .map(|(_, layers)| {
            let launches: Vec<&LaunchView> =
                layers.iter().filter_map(|l| launches_of.get(l)).flatten().copied().collect();
            let cost: Cost = if launches.is_empty() {
                layers.iter().flat_map(|l| &nodes_of[l]).map(|n| n.cost.cost).sum()
            } else {
                launches.iter().map(|l| l.cost.cost).sum()
            };
            let ids: Vec<u32> = launches.iter().map(|l| l.id).collect();
            let first = layers.first().copied().unwrap_or_default();
            LayerGroupView {
                nodes: nodes_of[&first].iter().map(|n| n.id).collect(),
                launches: launches.iter().filter(|l| l.layer == Some(first)).map(|l| l.id).collect(),
                formats: formats(graph, &layers, &nodes_of),
                cost: CostView::new(cost, input.bandwidth_bytes_per_s),
                measured: input.measured(&ids, cost),
                layers,
            }
        })
        .collect()
}

/// A text that is the same for layers of equal structure and for no others.
fn structure(graph: &Graph, nodes: &[&NodeView], launches: &[&LaunchView]) -> String {
    let position: HashMap<u32, usize> = nodes.iter().enumerate().map(|(i, n)| (n.id, i)).collect();
    let mut text = String::new();
    for node in nodes {
        let attributes = serde_json::Value::Object(node.attributes.clone());
        let _ = write!(text, "{} {} {attributes} {}", node.name, node.op, node.production);
        for weight in &node.weights {
            let _ = write!(text, " w{:?}", graph.weight(WeightId(*weight)).shape);
        }
        for value in &node.inputs {
            let value = graph.value(ValueId(*value));
            let made_at = value.producer.and_then(|p| position.get(&p.0));
            let _ = write!(text, " <{}", value.shape);
            let _ = match (made_at, value.producer) {
                (Some(at), _) => write!(text, "@{at}"),
                (None, Some(_)) => write!(text, "@outside"),
                (None, None) => write!(text, "@{}", value.id),
            };
        }
        for value in &node.outputs {
            let _ = write!(text, " >{}", graph.value(ValueId(*value)).shape);
        }
        text.push('\n');
    }
    for launch in launches {
        let phases: Vec<Vec<Option<&usize>>> =
            launch.phases.iter().map(|p| p.iter().map(|n| position.get(n)).collect()).collect();
        let _ = writeln!(text, "{} {phases:?} {}", launch.kind, launch.recomputed);
    }
    text
}

/// The nodes whose weights' formats differ between the layers: format → layers.
fn formats(
    graph: &Graph,
    layers: &[usize],
    nodes_of: &BTreeMap<usize, Vec<&NodeView>>,
) -> BTreeMap<&'static str, BTreeMap<String, Vec<usize>>> {
    let mut by_node: BTreeMap<&'static str, BTreeMap<String, Vec<usize>>> = BTreeMap::new();
    for layer in layers {
        for node in &nodes_of[layer] {
            let names: Vec<&str> =
                node.weights.iter().map(|w| graph.weight(WeightId(*w)).format.name()).collect();
            by_node.entry(node.name).or_default().entry(names.join("+")).or_default().push(*layer);
        }
    }
    by_node.retain(|_, formats| formats.len() > 1);
    by_node
}
