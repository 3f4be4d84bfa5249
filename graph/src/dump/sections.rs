//! A dump as a reader wants it: the whole model's nodes, then each group of equal layers once, in execution order.

use super::view::{Dump, LaunchView, MeasuredView, NodeView};
use crate::cost::Cost;
use std::collections::BTreeMap;

/// What is shown between two headings.
pub(super) struct Section<'a> {
    /// The layers that it stands for; empty for nodes of the whole model.
    pub layers: &'a [usize],
    /// One row for each node of the first layer.
    pub nodes: Vec<Row<'a, NodeView>>,
    /// One row for each launch of the first layer.
    pub launches: Vec<Row<'a, LaunchView>>,
}

/// The same node or launch in each of a section's layers; the first stands for all.
pub(super) struct Row<'a, T> {
    /// In the order of the layers.
    pub members: Vec<&'a T>,
}

impl<'a, T> Row<'a, T> {
    /// The first layer's.
    pub fn first(&self) -> &'a T {
        self.members[0]
    }
}

impl Row<'_, NodeView> {
    /// The mean over the layers.
    pub fn mean_cost(&self) -> Cost {
        mean(self.members.iter().map(|n| n.cost.cost))
    }
}

impl Row<'_, LaunchView> {
    /// The mean over the layers.
    pub fn mean_cost(&self) -> Cost {
        mean(self.members.iter().map(|l| l.cost.cost))
    }

    /// Seconds and share of all layers together; rates of the whole.
    pub fn measured(&self) -> Option<MeasuredView> {
        let all: Vec<MeasuredView> = self.members.iter().filter_map(|l| l.measured).collect();
        let first = all.first()?;
        let seconds: f64 = all.iter().map(|m| m.seconds).sum();
        let bytes: u64 = self.members.iter().map(|l| l.cost.total_bytes).sum();
        let per = |x: f64| if seconds > 0.0 { x / seconds } else { 0.0 };
        let roofline: f64 = self.members.iter().filter_map(|l| l.cost.roofline_seconds).sum();
        Some(MeasuredView {
            seconds,
            share: all.iter().map(|m| m.share).sum(),
            bandwidth_bytes_per_s: per(bytes as f64),
            roofline_share: first.roofline_share.map(|_| per(roofline)),
        })
    }
}

fn mean(costs: impl ExactSizeIterator<Item = Cost>) -> Cost {
    let n = costs.len().max(1) as u64;
    let sum: Cost = costs.sum();
    Cost {
        weight_bytes: sum.weight_bytes / n,
        state_bytes: sum.state_bytes / n,
        activation_bytes: sum.activation_bytes / n,
        written_bytes: sum.written_bytes / n,
        flops: sum.flops / n,
    }
}

/// The sections in execution order, each group of layers where its first layer stands.
pub(super) fn sections(dump: &Dump) -> Vec<Section<'_>> {
    let nodes_by_layer = by_layer(&dump.nodes, |n| n.layer);
    let launches_by_layer = by_layer(&dump.launches, |l| l.layer);
    let mut sections: Vec<Section<'_>> = Vec::new();
    let mut last = usize::MAX;
    for node in &dump.nodes {
        // Each whole-model run and each group is one section; a group is opened by its first layer's first node.
        let Some(layer) = node.layer else {
            if last != 0 || sections.is_empty() {
                sections.push(Section { layers: &[], nodes: Vec::new(), launches: Vec::new() });
            }
            last = 0;
            if let Some(section) = sections.last_mut() {
                section.nodes.push(Row { members: vec![node] });
                let launch = node.launch.and_then(|id| dump.launches.iter().find(|l| l.id == id));
                if let Some(launch) = launch
                    && section.launches.iter().all(|row| row.first().id != launch.id)
                {
                    section.launches.push(Row { members: vec![launch] });
                }
            }
            continue;
        };
        let opened = dump.layer_groups.iter().find(|g| g.nodes.first() == Some(&node.id));
        if let Some(group) = opened {
            sections.push(Section {
                layers: &group.layers,
                nodes: rows(&group.layers, &nodes_by_layer),
                launches: rows(&group.layers, &launches_by_layer),
            });
        }
        last = layer + 1;
    }
    sections
}

fn by_layer<'a, T>(all: &'a [T], layer: impl Fn(&T) -> Option<usize>) -> BTreeMap<Option<usize>, Vec<&'a T>> {
    let mut map: BTreeMap<Option<usize>, Vec<&'a T>> = BTreeMap::new();
    for item in all {
        map.entry(layer(item)).or_default().push(item);
    }
    map
}

fn rows<'a, T>(layers: &[usize], by_layer: &BTreeMap<Option<usize>, Vec<&'a T>>) -> Vec<Row<'a, T>> {
    let of = |layer: &usize| by_layer.get(&Some(*layer)).map_or(&[][..], Vec::as_slice);
    let Some(first) = layers.first() else { return Vec::new() };
    let row = |i: usize| Row { members: layers.iter().filter_map(|l| of(l).get(i).copied()).collect() };
    (0..of(first).len()).map(row).collect()
}
