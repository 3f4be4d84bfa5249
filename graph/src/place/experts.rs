//! Experts over several devices: the first holds everything else.
//!
//! Devices are filled in the order in which they are named; neighbours of one backend share in proportion to what they may take.
//! With counts of a router's choices the experts that were chosen most go first; without, each layer is shared evenly.

use super::{Budget, PlaceError, Placement, SCHEMA_VERSION, Sizes, weight_bytes};
use crate::ir::{Graph, WeightId};
use crate::passes::ExpertPart;
use std::collections::{BTreeMap, BTreeSet};

/// How often each expert was chosen, by layer.
pub type ExpertUse = BTreeMap<usize, Vec<u64>>;

/// Bytes of one expert of a part.
#[must_use]
pub fn expert_bytes(graph: &Graph, part: &ExpertPart) -> u64 {
    let nodes = part.nodes.iter().filter_map(|id| graph.node(*id));
    let weights: BTreeSet<WeightId> = nodes.flat_map(|node| node.op.weights()).collect();
    let all: u64 = weights.into_iter().map(|id| weight_bytes(graph.weight(id))).sum();
    all / part.num_experts.max(1) as u64
}

/// Places the experts of `parts`, and all else on the first device.
///
/// # Errors
/// [`PlaceError::TooSmall`] with the least that would do; [`PlaceError::NoDevice`]; [`PlaceError::NoExperts`]; [`PlaceError::Experts`] for counts of
/// another model.
pub fn by_experts(
    graph: &Graph,
    parts: &[ExpertPart],
    sizes: &Sizes,
    devices: &[Budget],
    used: Option<&ExpertUse>,
) -> Result<Placement, PlaceError> {
    let first = devices.first().ok_or(PlaceError::NoDevice)?;
    if parts.is_empty() {
        return Err(PlaceError::NoExperts);
    }
    for (layer, counts) in used.into_iter().flatten() {
        let part = parts.iter().find(|part| part.layer.index() == *layer);
        let wanted = part.map_or(0, |part| part.num_experts);
        if counts.len() > wanted {
            return Err(PlaceError::Experts { layer: *layer, found: counts.len(), wanted });
        }
    }
    let each: Vec<u64> = parts.iter().map(|part| expert_bytes(graph, part)).collect();
    let all: u64 = parts.iter().zip(&each).map(|(part, bytes)| bytes * part.num_experts as u64).sum();
    let trunk = sizes.total().saturating_sub(all);
    let last_layer = graph.num_layers.saturating_sub(1);
    let too_small = |device: &Budget, wanted_bytes: u64| PlaceError::TooSmall {
        first_layer: 0,
        last_layer,
        wanted_bytes,
        device: device.device.clone(),
        budget_bytes: device.bytes.unwrap_or(u64::MAX),
    };
    if first.bytes.is_some_and(|bytes| bytes < trunk) {
        return Err(too_small(first, trunk));
    }
    let taken = |i: usize| if i == 0 { trunk } else { sizes.working };
    let rooms: Vec<u64> = devices
        .iter()
        .enumerate()
        .map(|(i, device)| device.bytes.map_or(u64::MAX, |bytes| bytes.saturating_sub(taken(i))))
        .collect();
    let mut room = capacities(devices, &rooms, all);
    let mut experts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let layer_of = |part: usize| parts[part].layer.index();
    for (part, of) in parts.iter().enumerate() {
        experts.insert(layer_of(part), vec![usize::MAX; of.num_experts]);
    }
    let wanted: Vec<(usize, usize, Option<usize>)> = match used {
        Some(used) => by_use(parts, used).into_iter().map(|(part, expert)| (part, expert, None)).collect(),
        None => evenly(parts, &room),
    };
    let mut left = rooms;
    let mut without = Vec::new();
    for (part, expert, device) in wanted {
        let bytes = each[part];
        // What rounding leaves over goes to whoever has room.
        let fits = |d: &usize| room[*d] >= bytes && left[*d] >= bytes;
        let device = match device {
            Some(device) => Some(device).filter(|d| left[*d] >= bytes),
            None => (0..devices.len()).find(fits),
        };
        match device {
            Some(device) => {
                room[device] = room[device].saturating_sub(bytes);
                left[device] -= bytes;
                if let Some(of) = experts.get_mut(&layer_of(part)) {
                    of[expert] = device;
                }
            }
            None => without.push((part, expert)),
        }
    }
    let mut missing = 0;
    for (part, expert) in without {
        let bytes = each[part];
        match (0..devices.len()).find(|d| left[*d] >= bytes) {
            Some(device) => {
                left[device] -= bytes;
                if let Some(of) = experts.get_mut(&layer_of(part)) {
                    of[expert] = device;
                }
            }
            None => missing += bytes,
        }
    }
    if missing > 0 {
        let (i, last) = (devices.len() - 1, &devices[devices.len() - 1]);
        let has = last.bytes.unwrap_or(0).max(taken(i)) - left[i];
        return Err(too_small(last, has + missing));
    }
    Ok(Placement {
        schema_version: SCHEMA_VERSION,
        devices: devices.iter().map(|device| device.device.clone()).collect(),
        layers: vec![0; graph.num_layers],
        experts,
    })
}

/// What each device is to hold of `all` bytes.
fn capacities(devices: &[Budget], rooms: &[u64], all: u64) -> Vec<u64> {
    let mut capacities = Vec::new();
    let mut rest = all as f64;
    for tier in devices.chunk_by(|a, b| a.backend == b.backend) {
        let of_tier = &rooms[capacities.len()..capacities.len() + tier.len()];
        let together: f64 = of_tier.iter().map(|room| *room as f64).sum();
        let share = rest.min(together);
        capacities.extend(of_tier.iter().map(|room| (share * *room as f64 / together.max(1.0)) as u64));
        rest -= share;
    }
    capacities
}

/// All experts, those that were chosen most first.
fn by_use(parts: &[ExpertPart], used: &ExpertUse) -> Vec<(usize, usize)> {
    let count = |part: usize, expert: usize| {
        used.get(&parts[part].layer.index()).and_then(|of| of.get(expert)).copied().unwrap_or(0)
    };
    let all = parts.iter().enumerate().flat_map(|(p, part)| (0..part.num_experts).map(move |e| (p, e)));
    let mut all: Vec<(usize, usize)> = all.collect();
    all.sort_by_key(|(part, expert)| (std::cmp::Reverse(count(*part, *expert)), *part, *expert));
    all
}

/// All experts in their order, each layer shared as the capacities are.
fn evenly(parts: &[ExpertPart], capacities: &[u64]) -> Vec<(usize, usize, Option<usize>)> {
    let all: f64 = capacities.iter().map(|c| *c as f64).sum::<f64>().max(1.0);
    let mut placed = Vec::new();
    for (p, part) in parts.iter().enumerate() {
        let mut next = 0;
        for (device, capacity) in capacities.iter().enumerate() {
            let exact = part.num_experts as f64 * *capacity as f64 / all;
            // A last bit of the division is no expert less.
            let count = ((exact + 1e-6).floor() as usize).min(part.num_experts - next);
            placed.extend((next..next + count).map(|expert| (p, expert, Some(device))));
            next += count;
        }
        placed.extend((next..part.num_experts).map(|expert| (p, expert, None)));
    }
    placed
}
