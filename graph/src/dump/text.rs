//! A dump as text: a table that fits a screen, repeated layers once.

use super::attributes::line;
use super::sections::{Row, Section, sections};
use super::table::{Align, Table};
use super::units;
use super::view::{Dump, LaunchView, Level, MeasuredView, NodeView, ValueView, WeightView};
use crate::cost::Cost;
use crate::shown::shown;
use std::collections::BTreeMap;
use std::fmt::Write;

/// The text.
#[must_use]
pub fn text(dump: &Dump) -> String {
    let mut out = String::new();
    header(dump, &mut out);
    match dump.level {
        Level::Lowered | Level::Optimized => nodes(dump, &mut out),
        Level::Plan => {
            launches(dump, &mut out);
            memory(dump, &mut out);
        }
    }
    kinds(dump, &mut out);
    formats(dump, &mut out);
    out
}

fn header(dump: &Dump, out: &mut String) {
    let model = &dump.model;
    let name = model.name.as_ref().map_or_else(String::new, |n| format!(" ({})", shown(n)));
    let _ = writeln!(
        out,
        "{}{name}: {}, hidden_size {}, vocabulary {}, weights {}",
        model.architecture,
        counted(model.num_hidden_layers, "layer"),
        model.hidden_size,
        model.vocab_size,
        units::bytes(model.weight_bytes),
    );
    for left_out in &model.left_out {
        let _ = writeln!(
            out,
            "left out: {} of {}, {}: {}",
            counted(left_out.tensors, "tensor"),
            shown(&left_out.prefix),
            units::bytes(left_out.bytes),
            left_out.reason,
        );
    }
    let backend = dump.backend.as_ref().map_or_else(String::new, |b| {
        let device = b.device.as_ref().map_or_else(String::new, |d| format!(" on {d}"));
        format!(" for {}{device}, activations {}", b.name, b.activations)
    });
    let totals = &dump.totals;
    let launches =
        if dump.launches.is_empty() { String::new() } else { format!(" in {} launches", totals.launches) };
    let _ = writeln!(
        out,
        "level {}{backend}: {} nodes{launches}, {} taps",
        dump.level.name(),
        totals.nodes,
        totals.taps
    );
    let sizes = dump.step.sizes;
    let _ = writeln!(
        out,
        "a step of T={} tokens, S={} cached, R={} rows of logits: {}{}",
        sizes.tokens,
        sizes.cached,
        sizes.logits_rows,
        cost_line(totals.cost.cost, dump.bandwidth_bytes_per_s),
        measured_line(totals.measured, dump.profiled_steps),
    );
    out.push('\n');
}

/// `1 layer`, `48 layers`.
fn counted(n: usize, what: &str) -> String {
    plural(n, what, &format!("{what}s"))
}

fn plural(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

fn cost_line(cost: Cost, bandwidth_bytes_per_s: Option<f64>) -> String {
    let roofline = bandwidth_bytes_per_s.map_or_else(String::new, |b| {
        format!(", at {} at best {}", units::bandwidth(b), units::seconds(cost.seconds_at(b)))
    });
    format!(
        "{} read, {} written, {}{roofline}",
        units::bytes(cost.read_bytes()),
        units::bytes(cost.written_bytes),
        units::flops(cost.flops),
    )
}

fn measured_line(measured: Option<MeasuredView>, steps: Option<usize>) -> String {
    let (Some(m), Some(steps)) = (measured, steps) else { return String::new() };
    let of_roofline = m.roofline_share.map_or_else(String::new, |r| format!(", {}", units::percent(r)));
    format!(
        "; measured {} ({}{of_roofline}; mean of {steps} steps, held between launches)",
        units::seconds(m.seconds),
        units::bandwidth(m.bandwidth_bytes_per_s)
    )
}

/// A heading for a section of layers; none for the whole model's.
fn heading(dump: &Dump, section: &Section<'_>) -> Option<String> {
    let group = dump.layer_groups.iter().find(|g| g.layers == section.layers)?;
    let of_all = cost_line(group.cost.cost, dump.bandwidth_bytes_per_s);
    let measured = group.measured.map_or_else(String::new, |m| {
        format!(", measured {} ({})", units::seconds(m.seconds), units::percent(m.share))
    });
    // Of one layer: where every launch of it says how many.
    let dispatches: Option<usize> =
        section.launches.iter().map(|row| row.first().kernel.as_ref()?.dispatches).sum();
    let dispatches = dispatches.filter(|_| !section.launches.is_empty());
    let each =
        dispatches.map_or_else(String::new, |n| format!(", {} a layer", plural(n, "dispatch", "dispatches")));
    Some(match group.layers.len() {
        1 => format!("layer {}: {of_all}{each}{measured}", group.layers[0]),
        n => format!(
            "layers {} ({n} of one structure, rows are their mean): {of_all}{each}{measured}",
            units::ranges(&group.layers)
        ),
    })
}

const NODE_HEADS: &[(&str, Align)] = &[
    ("launch", Align::Left),
    ("node", Align::Left),
    ("op", Align::Left),
    ("weight", Align::Left),
    ("result", Align::Left),
    ("tap", Align::Left),
    ("read", Align::Right),
    ("written", Align::Right),
    ("flops", Align::Right),
    ("attributes", Align::Left),
];

fn nodes(dump: &Dump, out: &mut String) {
    let index = Index::new(dump);
    let mut table = Table::new(NODE_HEADS);
    for section in sections(dump) {
        let heading = heading(dump, &section);
        let indent = if heading.is_some() { "  " } else { "" };
        if let Some(heading) = heading {
            table.text(heading);
        }
        let mut last = None;
        for (i, row) in section.nodes.iter().enumerate() {
            let node = row.first();
            let next = section.nodes.get(i + 1).and_then(|r| r.first().launch);
            let launch = index.launch_cell(node, last, next);
            last = node.launch;
            let cost = row.mean_cost();
            let mut cells = vec![
                launch,
                format!("{indent}{}", node.name),
                if node.production { node.op.to_owned() } else { format!("{} (recomputed)", node.op) },
                index.weights(row),
                index.shapes(node),
                index.taps(node),
            ];
            cells.extend(cost_cells(cost));
            cells.push(line(&node.attributes));
            table.row(cells);
        }
    }
    table.render(out);
}

fn cost_cells(cost: Cost) -> [String; 3] {
    let bytes = |n: u64| if n == 0 { "–".to_owned() } else { units::bytes(n) };
    [
        bytes(cost.read_bytes()),
        bytes(cost.written_bytes),
        if cost.flops == 0 { "–".to_owned() } else { units::flops(cost.flops) },
    ]
}

const LAUNCH_HEADS: &[(&str, Align)] = &[
    ("#", Align::Right),
    ("launch", Align::Left),
    ("kernel", Align::Left),
    ("grid", Align::Left),
    ("read", Align::Right),
    ("written", Align::Right),
    ("flops", Align::Right),
    ("at best", Align::Right),
    ("measured", Align::Right),
    ("share", Align::Right),
    ("of best", Align::Right),
    ("stores", Align::Left),
    ("holds", Align::Left),
];

fn launches(dump: &Dump, out: &mut String) {
    let index = Index::new(dump);
    let mut table = Table::new(LAUNCH_HEADS);
    for section in sections(dump) {
        if let Some(heading) = heading(dump, &section) {
            table.text(heading);
        }
        for row in &section.launches {
            let launch = row.first();
            let cost = row.mean_cost();
            let mut kernels: Vec<&str> =
                row.members.iter().filter_map(|l| Some(l.kernel.as_ref()?.name.as_str())).collect();
            kernels.sort_unstable();
            kernels.dedup();
            let mut cells = vec![
                launch.id.to_string(),
                if launch.recomputed {
                    format!("{} (recomputed)", launch.kind)
                } else {
                    launch.kind.to_owned()
                },
                kernels.join(" | "),
                launch.kernel.as_ref().map_or_else(String::new, |k| {
                    let grid = k.grid.map_or_else(String::new, size3);
                    k.workgroup.map_or(grid.clone(), |w| format!("{grid} of {}", size3(w)))
                }),
            ];
            cells.extend(cost_cells(cost));
            let best = dump.bandwidth_bytes_per_s.map(|b| units::seconds(cost.seconds_at(b)));
            cells.push(best.unwrap_or_default());
            let measured = row.measured();
            let mean = |m: MeasuredView| units::seconds(m.seconds / row.members.len() as f64);
            cells.push(measured.map_or_else(String::new, mean));
            cells.push(measured.map_or_else(String::new, |m| units::percent(m.share)));
            let of_best = measured.and_then(|m| m.roofline_share).map(units::percent);
            cells.push(of_best.unwrap_or_default());
            cells.push(index.stored(launch));
            cells.push(index.held(launch));
            table.row(cells);
        }
    }
    table.render(out);
}

fn size3([x, y, z]: [u32; 3]) -> String {
    match (y, z) {
        (1, 1) => x.to_string(),
        (_, 1) => format!("{x}×{y}"),
        _ => format!("{x}×{y}×{z}"),
    }
}

/// The arena, and which values share its bytes.
fn memory(dump: &Dump, out: &mut String) {
    let Some(memory) = dump.memory else { return };
    let _ = writeln!(
        out,
        "\nmemory: an arena of {} for {} values that cross launches; apart they would take {}",
        units::bytes(memory.arena_bytes as u64),
        memory.slots,
        units::bytes(memory.naive_bytes as u64),
    );
    let mut places: BTreeMap<(usize, usize), Vec<&ValueView>> = BTreeMap::new();
    for value in &dump.values {
        if let Some(b) = value.buffer {
            places.entry((b.offset_bytes, b.size_bytes)).or_default().push(value);
        }
    }
    let mut table = Table::new(&[
        ("offset", Align::Right),
        ("size", Align::Right),
        ("values", Align::Right),
        ("in turn", Align::Left),
    ]);
    for ((offset, size), mut values) in places {
        values.sort_by_key(|v| v.buffer.map_or(0, |b| b.first_launch));
        let mut names: Vec<&str> = Vec::new();
        for value in &values {
            // Layers repeat: each node's name once.
            let name = value.name.rsplit('/').next().unwrap_or_default();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        table.row(vec![offset.to_string(), size.to_string(), values.len().to_string(), names.join(", ")]);
    }
    table.render(out);
}

/// Costs by kind, the dearest first.
fn kinds(dump: &Dump, out: &mut String) {
    out.push('\n');
    let mut table = Table::new(&[
        (if dump.launches.is_empty() { "by op" } else { "by launch" }, Align::Left),
        ("count", Align::Right),
        ("bytes", Align::Right),
        ("of all", Align::Right),
        ("flops", Align::Right),
        ("at best", Align::Right),
        ("measured", Align::Right),
        ("share", Align::Right),
        ("rate", Align::Right),
        ("of best", Align::Right),
    ]);
    let all = dump.totals.cost.total_bytes.max(1) as f64;
    for kind in &dump.kinds {
        let m = kind.measured;
        let measured = |f: &dyn Fn(MeasuredView) -> Option<String>| m.and_then(f).unwrap_or_default();
        table.row(vec![
            kind.kind.to_owned(),
            kind.count.to_string(),
            units::bytes(kind.cost.total_bytes),
            units::percent(kind.cost.total_bytes as f64 / all),
            units::flops(kind.cost.cost.flops),
            kind.cost.roofline_seconds.map(units::seconds).unwrap_or_default(),
            measured(&|m| Some(units::seconds(m.seconds))),
            measured(&|m| Some(units::percent(m.share))),
            measured(&|m| Some(units::bandwidth(m.bandwidth_bytes_per_s))),
            measured(&|m| m.roofline_share.map(units::percent)),
        ]);
    }
    table.render(out);
}

/// Which layers of a group have which format.
fn formats(dump: &Dump, out: &mut String) {
    for group in &dump.layer_groups {
        let mut by_formats: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (node, formats) in &group.formats {
            let parts = formats.iter().map(|(f, layers)| format!("{f} in layers {}", units::ranges(layers)));
            by_formats.entry(parts.collect::<Vec<_>>().join("; ")).or_default().push(node);
        }
        for (formats, nodes) in by_formats {
            let _ = write!(out, "\n{}: {formats}\n", nodes.join(", "));
        }
    }
}

/// Look-ups by id.
struct Index<'a> {
    dump: &'a Dump,
    values: BTreeMap<u32, &'a ValueView>,
    weights: BTreeMap<u32, &'a WeightView>,
    nodes: BTreeMap<u32, &'a NodeView>,
    taps: BTreeMap<u32, Vec<&'static str>>,
}

impl<'a> Index<'a> {
    fn new(dump: &'a Dump) -> Index<'a> {
        let mut taps: BTreeMap<u32, Vec<&'static str>> = BTreeMap::new();
        for tap in dump.taps.iter().filter(|t| t.kept) {
            if let Some(node) = tap.node {
                taps.entry(node).or_default().push(tap.stage);
            }
        }
        Index {
            dump,
            values: dump.values.iter().map(|v| (v.id, v)).collect(),
            weights: dump.weights.iter().map(|w| (w.id, w)).collect(),
            nodes: dump.nodes.iter().map(|n| (n.id, n)).collect(),
            taps,
        }
    }

    /// `Q4_K|Q6_K [2048, 768]`: the formats in the order in which the layers bring them.
    fn weights(&self, row: &Row<'_, NodeView>) -> String {
        let mut parts = Vec::new();
        for i in 0..row.first().weights.len() {
            let of = |n: &NodeView| n.weights.get(i).and_then(|w| self.weights.get(w)).copied();
            let mut formats: Vec<&str> = row.members.iter().filter_map(|n| of(n)).map(|w| w.format).collect();
            formats.sort_unstable();
            formats.dedup();
            let shape = of(row.first()).map_or_else(String::new, |w| format!("{:?}", w.shape));
            parts.push(format!("{} {shape}", formats.join("|")));
        }
        parts.join(" + ")
    }

    fn shapes(&self, node: &NodeView) -> String {
        let shapes = node.outputs.iter().filter_map(|v| self.values.get(v));
        let mut shapes: Vec<String> = shapes.map(|v| v.shape.to_string()).collect();
        // Two results of one shape are said once.
        let n = shapes.len();
        shapes.dedup();
        match (n, &shapes[..]) {
            (2.., [one]) => format!("{n} × {one}"),
            _ => shapes.join(" "),
        }
    }

    fn taps(&self, node: &NodeView) -> String {
        self.taps.get(&node.id).map_or_else(String::new, |t| t.join(" "))
    }

    /// The launch on its first node, a bracket along the rest.
    fn launch_cell(&self, node: &NodeView, last: Option<u32>, next: Option<u32>) -> String {
        let Some(id) = node.launch else { return String::new() };
        if last == Some(id) {
            return (if next == Some(id) { "│" } else { "└" }).to_owned();
        }
        let launch = self.dump.launches.iter().find(|l| l.id == id);
        let kind = launch.map_or("", |l| l.kind);
        if next == Some(id) { format!("┌ {id} {kind}") } else { format!("─ {id} {kind}") }
    }

    fn held(&self, launch: &LaunchView) -> String {
        let name = |id: &u32| self.nodes.get(id).map_or("?", |n| n.name);
        let phases = launch.phases.iter().map(|p| p.iter().map(name).collect::<Vec<_>>().join(" "));
        let held = phases.collect::<Vec<_>>().join(" ‖ ");
        if launch.taps.is_empty() {
            return held;
        }
        let stages: Vec<&str> = launch.taps.iter().filter_map(|t| t.rsplit('/').next()).collect();
        format!("{held}; taps {}", stages.join(" "))
    }

    /// Sizes and offsets of what a launch stores: `q_rope 16.4 kB @8192`.
    fn stored(&self, launch: &LaunchView) -> String {
        let stored = launch.writes.iter().filter_map(|v| {
            let value = self.values.get(v)?;
            let buffer = value.buffer?;
            let name = value.name.rsplit('/').next().unwrap_or_default();
            Some(format!("{name} @{}", buffer.offset_bytes))
        });
        stored.collect::<Vec<_>>().join(" ")
    }
}
