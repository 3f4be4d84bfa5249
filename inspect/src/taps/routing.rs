//! Where the router sent every token: a record of positions, layers, experts and weights, and what it sums up to.

use super::RunSettings;
use super::number;
use super::number::Num;
use super::save::ModelIdentity;
use moe_run_graph::config::{FfnConfig, ModelConfig};
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::Stage;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{ExecutableInfo, Observer, TapValue};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The version of the routing file's layout.
const SCHEMA_VERSION: u32 = 2;

/// Where the tokens come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenSource {
    /// A question in the model's chat format.
    Chat,
    /// A text as it is, in one pass.
    Raw,
    /// Ids as given.
    Tokens,
    /// A text as it is, cut into chunks, each from an empty context.
    Text,
}

/// The first line of a routing file: what was run.
#[derive(Debug, Serialize)]
pub struct RoutingHead<'a> {
    schema_version: u32,
    kind: &'static str,
    moe_run_version: &'static str,
    model: ModelIdentity,
    architecture: &'a str,
    #[serde(flatten)]
    settings: RunSettings<'a>,
    layers: Vec<RoutedLayer>,
    source: TokenSource,
    file: Option<String>,
    chunks: usize,
    chunk_tokens: usize,
    tokens: Vec<TokenId>,
}

/// A layer that has experts.
#[derive(Debug, Serialize)]
struct RoutedLayer {
    layer: usize,
    num_experts: usize,
    num_experts_per_tok: usize,
}

impl<'a> RoutingHead<'a> {
    /// What was run: the chunks are all tokens, each from position 0 of an empty context; the last may be shorter.
    #[must_use]
    pub fn new(
        model: ModelIdentity,
        config: &'a ModelConfig,
        executable: &'a ExecutableInfo,
        source: TokenSource,
        file: Option<&Path>,
        chunks: &[Vec<TokenId>],
    ) -> RoutingHead<'a> {
        let layers = config.layers.iter().enumerate().filter_map(|(layer, config)| match &config.ffn {
            FfnConfig::Moe(moe) => Some(RoutedLayer {
                layer,
                num_experts: moe.num_experts,
                num_experts_per_tok: moe.num_experts_per_tok,
            }),
            FfnConfig::Dense { .. } | FfnConfig::Absent => None,
        });
        RoutingHead {
            schema_version: SCHEMA_VERSION,
            kind: "routing",
            moe_run_version: env!("CARGO_PKG_VERSION"),
            model,
            architecture: &config.architecture,
            settings: executable.into(),
            layers: layers.collect(),
            source,
            file: file.map(|file| file.display().to_string()),
            chunks: chunks.len(),
            chunk_tokens: chunks.first().map_or(0, Vec::len),
            tokens: chunks.concat(),
        }
    }

    /// Whether there is anything to record.
    #[must_use]
    pub fn has_experts(&self) -> bool {
        !self.layers.is_empty()
    }
}

/// The experts of one position in one layer, best first: every other line of a routing file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Routed {
    /// Chunk.
    pub chunk: usize,
    /// Position in it.
    pub position: u32,
    /// The token there.
    pub token_id: TokenId,
    /// Layer.
    pub layer: usize,
    /// Ids.
    pub experts: Vec<u32>,
    /// Weights as applied.
    pub weights: Vec<Num<f32>>,
}

/// Records the routing of every position and layer of a chunk, and how often each expert was chosen in all of them.
#[derive(Debug, Default)]
pub struct RoutingSink {
    entries: BTreeMap<(u32, usize), (Vec<u32>, Vec<f32>)>,
    /// Of the chunks before this one, by layer and expert.
    counts: BTreeMap<usize, BTreeMap<u32, u64>>,
}

impl RoutingSink {
    /// The record of a chunk, by position, then layer.
    pub fn routed<'a>(&'a self, chunk: usize, tokens: &'a [TokenId]) -> impl Iterator<Item = Routed> + 'a {
        self.entries.iter().filter_map(move |(&(position, layer), (experts, weights))| {
            Some(Routed {
                chunk,
                position,
                token_id: *tokens.get(position as usize)?,
                layer,
                experts: experts.clone(),
                weights: weights.iter().copied().map(Num).collect(),
            })
        })
    }

    /// Begins the record of another chunk: of those before it, only how often each expert was chosen is kept.
    pub fn next_chunk(&mut self) {
        self.counts = self.all_counts();
        self.entries.clear();
    }

    fn all_counts(&self) -> BTreeMap<usize, BTreeMap<u32, u64>> {
        let mut counts = self.counts.clone();
        for ((_, layer), (experts, _)) in &self.entries {
            let layer = counts.entry(*layer).or_default();
            for expert in experts {
                *layer.entry(*expert).or_default() += 1;
            }
        }
        counts
    }

    /// The experts and weights of one position and layer.
    #[must_use]
    pub fn get(&self, position: u32, layer: usize) -> Option<(&[u32], &[f32])> {
        self.entries.get(&(position, layer)).map(|(e, w)| (e.as_slice(), w.as_slice()))
    }

    /// How the experts of each layer were used; `num_experts(layer)` is E.
    #[must_use]
    pub fn summary(&self, num_experts: impl Fn(usize) -> usize) -> Vec<LayerUse> {
        let layers = self.all_counts().into_iter().map(|(layer, chosen)| {
            let count = |expert: usize| chosen.get(&(expert as u32)).copied().unwrap_or(0);
            LayerUse::new(layer, (0..num_experts(layer)).map(count).collect())
        });
        layers.collect()
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
