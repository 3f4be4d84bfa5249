//! Where the router sent every token: a record of positions, layers, experts and weights, and what it sums up to.

use super::number;
use super::number::Num;
use crate::error::BackendError;
use crate::executable::{Observer, TapValue};
use moe_run_graph::ir::Stage;
use serde::Serialize;
use std::collections::BTreeMap;

/// The experts of one position in one layer, best first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Routed {
    /// Position.
    pub position: u32,
    /// Layer.
    pub layer: usize,
    /// Ids.
    pub experts: Vec<u32>,
    /// Weights as applied.
    pub weights: Vec<Num<f32>>,
}

/// Records the routing of every position and layer.
#[derive(Debug, Default)]
pub struct RoutingSink {
    entries: BTreeMap<(u32, usize), (Vec<u32>, Vec<f32>)>,
}

impl RoutingSink {
    /// The record, by position, then layer.
    pub fn routed(&self) -> impl Iterator<Item = Routed> + '_ {
        self.entries.iter().map(|(&(position, layer), (experts, weights))| Routed {
            position,
            layer,
            experts: experts.clone(),
            weights: weights.iter().copied().map(Num).collect(),
        })
    }

    /// The experts and weights of one position and layer.
    #[must_use]
    pub fn get(&self, position: u32, layer: usize) -> Option<(&[u32], &[f32])> {
        self.entries.get(&(position, layer)).map(|(e, w)| (e.as_slice(), w.as_slice()))
    }

    /// How the experts of each layer were used; `num_experts(layer)` is E.
    #[must_use]
    pub fn summary(&self, num_experts: impl Fn(usize) -> usize) -> Vec<LayerUse> {
        let mut layers: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for ((_, layer), (experts, _)) in &self.entries {
            let counts = layers.entry(*layer).or_insert_with(|| vec![0; num_experts(*layer)]);
            for expert in experts {
                if let Some(count) = counts.get_mut(*expert as usize) {
                    *count += 1;
                }
            }
        }
        layers.into_iter().map(|(layer, counts)| LayerUse::new(layer, counts)).collect()
    }
}

impl Observer for RoutingSink {
    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        let (Some(layer), Stage::MoeTopkIds | Stage::MoeRouter) = (tap.layer, tap.stage) else {
            return Ok(());
        };
        let data = tap.tensor.floats();
        let width = tap.tensor.shape.last().copied().unwrap_or(1).max(1);
        for (row, position) in data.chunks_exact(width).zip(tap.positions) {
            let entry = self.entries.entry((*position, layer)).or_default();
            if tap.stage == Stage::MoeTopkIds {
                // Ids are below 2^24, so that a float holds them.
                entry.0 = row.iter().map(|id| *id as u32).collect();
            } else {
                entry.1 = row.to_vec();
            }
        }
        Ok(())
    }
}

/// How often each expert of a layer was chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerUse {
    /// Layer.
    pub layer: usize,
    /// Choices, by expert.
    pub counts: Vec<u64>,
    /// Expert and choices, most used first, 5 at most.
    pub most_used: Vec<(usize, u64)>,
    /// Experts that no position chose.
    pub never_used: Vec<usize>,
    /// Entropy of the choices in bits: 0 where one expert gets all, log2 E where all get the same.
    #[serde(serialize_with = "number::f64")]
    pub entropy_bits: f64,
}

impl LayerUse {
    fn new(layer: usize, counts: Vec<u64>) -> LayerUse {
        let mut most_used: Vec<(usize, u64)> =
            counts.iter().copied().enumerate().filter(|c| c.1 > 0).collect();
        most_used.sort_by_key(|&(expert, count)| (std::cmp::Reverse(count), expert));
        most_used.truncate(5);
        let total: u64 = counts.iter().sum();
        let share = |&c: &u64| c as f64 / total.max(1) as f64;
        let entropy_bits = counts.iter().filter(|c| **c > 0).map(|c| -share(c) * share(c).log2()).sum();
        let never_used = counts.iter().enumerate().filter(|(_, c)| **c == 0).map(|(e, _)| e).collect();
        LayerUse { layer, counts, most_used, never_used, entropy_bits }
    }
}

/// A heat map of expert use as one SVG: a row a layer, a column an expert, darker where used more.
#[must_use]
pub fn heat_map_svg(layers: &[LayerUse]) -> String {
    const CELL: usize = 12;
    const LEFT: usize = 60;
    const TOP: usize = 40;
    let experts = layers.iter().map(|l| l.counts.len()).max().unwrap_or(0);
    let (width, height) = (LEFT + experts * CELL + 20, TOP + layers.len() * CELL + 20);
    let peak = layers.iter().flat_map(|l| &l.counts).copied().max().unwrap_or(0).max(1);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"10\">\n<title>Expert use by layer</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"16\">expert 0 to {} (darkest: {peak} choices)</text>\n",
        experts.saturating_sub(1)
    );
    for (row, layer) in layers.iter().enumerate() {
        let y = TOP + row * CELL;
        svg.push_str(&format!("<text x=\"4\" y=\"{}\">layer {}</text>\n", y + CELL - 2, layer.layer));
        for (expert, count) in layer.counts.iter().enumerate() {
            let lightness = 97.0 - 72.0 * *count as f64 / peak as f64;
            svg.push_str(&format!(
                "<rect x=\"{}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"hsl(215,70%,{lightness:.0}%)\">\
                 <title>layer {}, expert {expert}: {count}</title></rect>\n",
                LEFT + expert * CELL,
                layer.layer
            ));
        }
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::{LayerUse, heat_map_svg};

    #[test]
    fn summary_of_a_layer() {
        let layer = LayerUse::new(3, vec![4, 0, 4, 0]);
        assert_eq!(layer.most_used, [(0, 4), (2, 4)]);
        assert_eq!(layer.never_used, [1, 3]);
        assert!((layer.entropy_bits - 1.0).abs() < 1e-12);
        let svg = heat_map_svg(&[layer]);
        assert_eq!(svg.matches("<rect x=").count(), 4);
        assert!(svg.contains("layer 3, expert 2: 4"));
    }
}
