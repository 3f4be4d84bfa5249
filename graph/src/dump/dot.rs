//! A dump as a Graphviz graph: a cluster for each group of equal layers, a box in it for each launch of several nodes.

use super::attributes::line;
use super::sections::{Section, sections};
use super::units;
use super::view::{Dump, NodeView, ValueView, WeightView};
use crate::shown::shown;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The DOT text. Edges from one layer to the next of the same group are dashed and lead back to the group's top.
#[must_use]
pub fn dot(dump: &Dump) -> String {
    let sections = sections(dump);
    let values: BTreeMap<u32, &ValueView> = dump.values.iter().map(|v| (v.id, v)).collect();
    let weights: BTreeMap<u32, &WeightView> = dump.weights.iter().map(|w| (w.id, w)).collect();
    let mut taps: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for tap in dump.taps.iter().filter(|t| t.kept) {
        if let Some(node) = tap.node {
            taps.entry(node).or_default().push(tap.stage);
        }
    }

    let mut out = String::new();
    let _ = writeln!(out, "digraph {} {{", quoted(&dump.model.architecture));
    let title = dump.model.name.as_ref().unwrap_or(&dump.model.architecture);
    let _ = writeln!(out, "  label={};", quoted(&format!("{}, level {}", shown(title), dump.level.name())));
    out.push_str("  labelloc=t; fontname=\"Helvetica\"; compound=true;\n");
    out.push_str("  node [shape=box style=\"rounded,filled\" fillcolor=\"#f6f7f9\" color=\"#8a94a6\" fontname=\"Helvetica\" fontsize=10];\n");
    out.push_str("  edge [color=\"#8a94a6\" fontname=\"Helvetica\" fontsize=9];\n");

    let mut stands_for: BTreeMap<u32, u32> = BTreeMap::new();
    for (s, section) in sections.iter().enumerate() {
        let indent = if section.layers.is_empty() { "  " } else { "    " };
        if !section.layers.is_empty() {
            let _ = writeln!(out, "  subgraph cluster_layers_{s} {{");
            let _ = writeln!(out, "    label={}; color=\"#c9ced6\";", quoted(&group_label(section)));
        }
        for row in &section.nodes {
            for member in &row.members {
                stands_for.insert(member.id, row.first().id);
            }
            let label = node_label(row.first(), &row.members, &values, &weights, &taps);
            let dashed = if row.first().production { "" } else { " style=\"rounded,dashed\"" };
            let _ = writeln!(out, "{indent}n{} [label={}{dashed}];", row.first().id, quoted(&label));
        }
        for row in &section.launches {
            let launch = row.first();
            let nodes: Vec<u32> = launch.phases.iter().flatten().copied().collect();
            if nodes.len() < 2 {
                continue;
            }
            let _ = write!(out, "{indent}subgraph cluster_launch_{} {{ ", launch.id);
            let _ = write!(out, "label={}; style=\"rounded,filled\"; ", quoted(launch.kind));
            out.push_str("fillcolor=\"#eaf1fb\"; color=\"#9db8de\"; ");
            for node in nodes {
                let _ = write!(out, "n{node}; ");
            }
            out.push_str("}\n");
        }
        if !section.layers.is_empty() {
            out.push_str("  }\n");
        }
    }
    edges(dump, &values, &stands_for, &mut out);
    out.push_str("}\n");
    out
}

fn group_label(section: &Section<'_>) -> String {
    match section.layers {
        [layer] => format!("layer {layer}"),
        layers => format!("layers {} ({} of one structure)", units::ranges(layers), layers.len()),
    }
}

fn node_label(
    node: &NodeView,
    members: &[&NodeView],
    values: &BTreeMap<u32, &ValueView>,
    weights: &BTreeMap<u32, &WeightView>,
    taps: &BTreeMap<u32, Vec<&str>>,
) -> String {
    let mut label = format!("{}\n{}", node.name, node.op);
    let attributes = line(&node.attributes);
    if !attributes.is_empty() {
        let _ = write!(label, ": {attributes}");
    }
    for i in 0..node.weights.len() {
        let of = |n: &NodeView| n.weights.get(i).and_then(|w| weights.get(w)).copied();
        let formats: BTreeSet<&str> = members.iter().filter_map(|n| of(n)).map(|w| w.format).collect();
        let formats: Vec<&str> = formats.into_iter().collect();
        let shape = of(node).map_or_else(String::new, |w| format!("{:?}", w.shape));
        let _ = write!(label, "\n{} {shape}", formats.join("|"));
    }
    for value in node.outputs.iter().filter_map(|v| values.get(v)) {
        let _ = write!(label, "\n→ {}", value.shape);
    }
    if let Some(stages) = taps.get(&node.id) {
        let _ = write!(label, "\ntap {}", stages.join(", "));
    }
    label
}

/// One edge for each pair of shown nodes, labelled with the shapes that flow.
fn edges(dump: &Dump, values: &BTreeMap<u32, &ValueView>, stands_for: &BTreeMap<u32, u32>, out: &mut String) {
    let layer_of: BTreeMap<u32, Option<usize>> = dump.nodes.iter().map(|n| (n.id, n.layer)).collect();
    let mut inputs: BTreeSet<&str> = BTreeSet::new();
    let mut edges: BTreeMap<(String, u32, bool), BTreeSet<String>> = BTreeMap::new();
    for node in &dump.nodes {
        let Some(to) = stands_for.get(&node.id) else { continue };
        for value in node.inputs.iter().filter_map(|v| values.get(v)) {
            let (from, next_layer) = match value.producer {
                Some(producer) => {
                    let Some(from) = stands_for.get(&producer) else { continue };
                    let layers = (layer_of.get(&producer).copied().flatten(), node.layer);
                    let next_layer = matches!(layers, (Some(a), Some(b)) if a != b);
                    (format!("n{from}"), next_layer)
                }
                None => {
                    inputs.insert(&value.name);
                    (quoted(&value.name), false)
                }
            };
            edges.entry((from, *to, next_layer)).or_default().insert(value.shape.to_string());
        }
    }
    for input in inputs {
        let _ = writeln!(out, "  {} [shape=plaintext style=\"\" fontcolor=\"#5b6472\"];", quoted(input));
    }
    for ((from, to, next_layer), shapes) in edges {
        let shapes: Vec<String> = shapes.into_iter().collect();
        let style = if next_layer { " style=dashed constraint=false" } else { "" };
        let _ = writeln!(out, "  {from} -> n{to} [label={}{style}];", quoted(&shapes.join(", ")));
    }
}

/// A DOT string: quotes and backslashes escaped, line ends as `\n`.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c => {
                let _ = write!(out, "{}", shown(c));
            }
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn names_of_files_cannot_break_out_of_a_string() {
        assert_eq!(quoted("a\"b\\c\nd\te"), "\"a\\\"b\\\\c\\nd\\te\"");
    }
}
