//! The table of a plan for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use moe_run_graph::{
    quantize::{Entry, QuantizePlan},
    shown::shown,
};

use super::budget::Target;

/// A line a tensor, then the sums by format.
pub fn text(plan: &QuantizePlan, target: Option<&Target>) -> String {
    let name = |entry: &Entry| shown(&entry.name).to_string();
    let width = plan.entries.iter().map(|e| name(e).chars().count()).max().unwrap_or(0).max("tensor".len());
    let mut text = String::new();
    let cost_title = if target.is_some() { "  KL, nats" } else { "" };
    let _ = writeln!(
        text,
        "{:width$}  {:>22}  {:>7}  {:7}  {:>8}  {:>12}{cost_title}",
        "tensor", "shape", "from", "to", "bits", "bytes"
    );
    for entry in &plan.entries {
        let shape = entry.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" × ");
        let bits = entry.bytes as f64 * 8.0 / entry.elems().max(1) as f64;
        let cost = target.map_or(String::new(), |target| match target.cost(&entry.name) {
            Some(cost) => format!("  {cost:8.2e}"),
            None => " ".repeat(10),
        });
        let line = format!(
            "{:width$}  {shape:>22}  {:>7}  {:7}  {bits:8.4}  {:>12}{cost}  {}",
            name(entry),
            entry.stored(entry.from),
            entry.stored(entry.to),
            entry.bytes,
            entry.why.text()
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let mut formats: BTreeMap<_, (usize, usize)> = BTreeMap::new();
    for entry in &plan.entries {
        let (tensors, bytes) = formats.entry((entry.to, entry.stored(entry.to).name())).or_default();
        *tensors += 1;
        *bytes += entry.bytes;
    }
    let sums: Vec<String> = formats
        .iter()
        .map(|((_, format), (tensors, bytes))| {
            format!("{tensors} × {format} ({:.3} GB)", *bytes as f64 / 1e9)
        })
        .collect();
    let (gb, bits) = (plan.layout.file_bytes() as f64 / 1e9, plan.bits_per_weight());
    let _ = writeln!(text, "\n{}: {gb:.3} GB, {bits:.3} bits a weight", sums.join(", "));
    if let Some(target) = target {
        let _ = writeln!(
            text,
            "estimated divergence from the file as it is: {:.3e} nats a token, from {} tokens in what {:.1} passes of the \
             whole model take ({:.0} s)",
            target.estimated_kl, target.tokens, target.passes, target.seconds
        );
    }
    text
}
