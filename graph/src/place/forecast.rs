//! What a placement gives: bytes, shares of the experts' reads, and the time that reading alone takes for a token.
//!
//! A token reads the weights of every layer, of its experts the chosen ones, and the states of what is held; at a device's bandwidth
//! that is the least time. Devices that share a layer's experts work at the same time, layers one after another. Deliberately
//! absent: arithmetic, launches and caches, so that a measured time is longer.

use super::{ExpertUse, Placement, expert_bytes, weight_bytes};
use crate::ir::{Graph, Node, StateDecl, WeightId};
use crate::passes::ExpertPart;
use serde::Serialize;
use std::collections::BTreeSet;

/// Beside the bytes, what it takes to hand values from one device to another and back: a copy's latency, twice.
const CROSSING_SECONDS: f64 = 20e-6;

/// How fast a device reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    /// Of its memory.
    pub bytes_per_second: f64,
    /// Of what lies between it and the host.
    pub link_bytes_per_second: f64,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerForecast {
    /// Which; `None` is what comes behind the last: the norm and lm_head.
    pub layer: Option<usize>,
    /// The device that runs it, but for experts that others have.
    pub device: usize,
    /// By device: weights and states that it holds.
    pub bytes: Vec<u64>,
    /// By device: of the reads of the layer's experts, the share that is expected there; empty where there are none.
    pub expert_share: Vec<f64>,
    /// For a token.
    pub seconds: f64,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    /// Layer by layer.
    pub layers: Vec<LayerForecast>,
    /// By device: what it holds, the embedding and working memory too.
    pub bytes: Vec<u64>,
    /// By device: of all reads of experts, the share that is expected there.
    pub expert_share: Vec<f64>,
    /// For a token.
    pub seconds: f64,
}

/// What each state takes and what of it a token reads, in bytes.
pub struct StateBytes<'a> {
    /// Held.
    pub held: &'a dyn Fn(&StateDecl) -> u64,
    /// Read.
    pub read: &'a dyn Fn(&StateDecl) -> u64,
}

/// Counts a placement. `working` is what each device needs beside, `used` which experts are chosen how often; evenly where it is
/// absent.
#[must_use]
pub fn forecast(
    graph: &Graph,
    parts: &[ExpertPart],
    placement: &Placement,
    speeds: &[Speed],
    states: &StateBytes<'_>,
    working: u64,
    used: Option<&ExpertUse>,
) -> Forecast {
    let devices = placement.devices.len();
    let first_layer = graph.nodes.iter().position(|node| node.layer.is_some()).unwrap_or(0);
    let weights = |is_in: &dyn Fn(usize, &Node) -> bool| -> u64 {
        let nodes = graph.nodes.iter().enumerate().filter(|(i, node)| is_in(*i, node));
        let ids: BTreeSet<WeightId> = nodes.flat_map(|(_, node)| node.op.weights()).collect();
        ids.into_iter().map(|id| weight_bytes(graph.weight(id))).sum()
    };
    let mut layers = Vec::new();
    let (mut all_share, mut reads) = (vec![0.0; devices], 0.0);
    for (layer, home) in placement.layers.iter().copied().enumerate() {
        let here = |_: usize, node: &Node| node.layer.is_some_and(|l| l.index() == layer);
        let part = parts.iter().find(|part| part.layer.index() == layer);
        let each = part.map_or(0, |part| expert_bytes(graph, part));
        let experts = part.map_or(0, |part| each * part.num_experts as u64);
        let trunk = weights(&here) - experts;
        let of_layer = || graph.states.iter().filter(|state| state.layer.index() == layer);
        let mut bytes = vec![0; devices];
        bytes[home] += trunk + of_layer().map(states.held).sum::<u64>();
        let trunk_read = trunk + of_layer().map(states.read).sum::<u64>();
        let mut seconds = trunk_read as f64 / speeds[home].bytes_per_second;
        let mut expert_share = Vec::new();
        if let Some(part) = part {
            expert_share = vec![0.0; devices];
            let counts = used.and_then(|used| used.get(&layer));
            let total: u64 = counts.map_or(0, |counts| counts.iter().sum());
            for expert in 0..part.num_experts {
                let device = placement.experts.get(&layer).map_or(home, |of| of[expert]);
                bytes[device] += each;
                expert_share[device] += match counts {
                    Some(counts) if total > 0 => {
                        counts.get(expert).copied().unwrap_or(0) as f64 / total as f64
                    }
                    _ => 1.0 / part.num_experts as f64,
                };
            }
            let read = (part.per_token as u64 * each) as f64;
            let width = graph.value(part.y).shape.width().unwrap_or(0) as f64 * 4.0;
            let of_device = |(device, share): (usize, &f64)| -> f64 {
                let crossing = if device == home || *share == 0.0 {
                    0.0
                } else {
                    let link = speeds[device].link_bytes_per_second.min(speeds[home].link_bytes_per_second);
                    CROSSING_SECONDS + width * (1.0 + share * part.per_token as f64) / link
                };
                share * read / speeds[device].bytes_per_second + crossing
            };
            seconds += expert_share.iter().enumerate().map(of_device).fold(0.0, f64::max);
            all_share.iter_mut().zip(&expert_share).for_each(|(all, share)| *all += share * read);
            reads += read;
        }
        if layer > 0 && placement.layers[layer - 1] != home {
            seconds += CROSSING_SECONDS;
        }
        layers.push(LayerForecast { layer: Some(layer), device: home, bytes, expert_share, seconds });
    }
    let (first, last) = (placement.layers.first().copied().unwrap_or(0), placement.layers.last().copied());
    let last = last.unwrap_or(0);
    let head = weights(&|i, node| node.layer.is_none() && i >= first_layer);
    let mut bytes = vec![0; devices];
    bytes[last] = head;
    let seconds = head as f64 / speeds[last].bytes_per_second;
    layers.push(LayerForecast { layer: None, device: last, bytes, expert_share: Vec::new(), seconds });
    let mut bytes: Vec<u64> =
        (0..devices).map(|d| layers.iter().map(|layer| layer.bytes[d]).sum::<u64>()).collect();
    bytes[first] += weights(&|i, node| node.layer.is_none() && i < first_layer);
    bytes.iter_mut().filter(|bytes| **bytes > 0).for_each(|bytes| *bytes += working);
    let seconds = layers.iter().map(|layer| layer.seconds).sum();
    let expert_share =
        all_share.into_iter().map(|share| if reads > 0.0 { share / reads } else { 0.0 }).collect();
    Forecast { layers, bytes, expert_share, seconds }
}
