//! Whole layers, in order, one device after another.
//!
//! Devices are filled in the order in which they are named, so the fastest comes first. Neighbours of one backend share what falls
//! to them in proportion to what they may take, and each has a layer if there are enough.

use super::{Budget, PlaceError, Placement, SCHEMA_VERSION, Sizes};
use std::collections::BTreeMap;
use std::ops::Range;

/// Layers that stay together, and what they take.
struct Unit {
    layers: Range<usize>,
    bytes: u64,
}

/// Places whole layers; `cuts` says in front of which a cut may be made.
///
/// # Errors
/// [`PlaceError::TooSmall`] with the least that would do, [`PlaceError::NoDevice`].
pub fn by_layers(sizes: &Sizes, cuts: &[bool], devices: &[Budget]) -> Result<Placement, PlaceError> {
    if devices.is_empty() {
        return Err(PlaceError::NoDevice);
    }
    let units = units(sizes, cuts);
    let mut counts = vec![0; devices.len()];
    let mut next = 0;
    let mut start = 0;
    for tier in devices.chunk_by(|a, b| a.backend == b.backend) {
        let room: Vec<u64> = tier.iter().map(|d| room(d, sizes)).collect();
        let is_last = start + tier.len() == devices.len();
        let fits = filled(&units[next..], &room);
        if is_last && next + fits < units.len() {
            return Err(too_small(sizes, &units[next..], &room, tier));
        }
        let shares = shared(&units[next..next + fits], &room);
        counts[start..start + tier.len()].copy_from_slice(&shares);
        next += fits;
        start += tier.len();
    }
    let mut layers = vec![0; cuts.len()];
    let mut units = units.iter();
    for (device, count) in counts.iter().enumerate() {
        for unit in units.by_ref().take(*count) {
            layers[unit.layers.clone()].fill(device);
        }
    }
    let devices = devices.iter().map(|d| d.device.clone()).collect();
    Ok(Placement { schema_version: SCHEMA_VERSION, devices, layers, experts: BTreeMap::new() })
}

/// What a device has for layers.
fn room(device: &Budget, sizes: &Sizes) -> u64 {
    device.bytes.map_or(u64::MAX, |bytes| bytes.saturating_sub(sizes.working))
}

fn units(sizes: &Sizes, cuts: &[bool]) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    for (layer, bytes) in sizes.layers.iter().enumerate() {
        match units.last_mut() {
            Some(unit) if !cuts.get(layer).copied().unwrap_or(true) => {
                unit.layers.end = layer + 1;
                unit.bytes += bytes;
            }
            _ => units.push(Unit { layers: layer..layer + 1, bytes: *bytes }),
        }
    }
    if let Some(unit) = units.first_mut() {
        unit.bytes += sizes.first;
    }
    if let Some(unit) = units.last_mut() {
        unit.bytes += sizes.last;
    }
    units
}

/// How many units fit, filling one device after another.
fn filled(units: &[Unit], room: &[u64]) -> usize {
    let mut done = 0;
    for room in room {
        let mut left = *room;
        while let Some(unit) = units.get(done).filter(|unit| unit.bytes <= left) {
            left -= unit.bytes;
            done += 1;
        }
    }
    done
}

/// Shares units that fit, in proportion to the room.
fn shared(units: &[Unit], room: &[u64]) -> Vec<usize> {
    let mut counts = Vec::new();
    let mut rest = units;
    for (i, of_device) in room.iter().enumerate() {
        let later = &room[i + 1..];
        if later.is_empty() {
            counts.push(rest.len());
            break;
        }
        let all: f64 = room[i..].iter().map(|room| *room as f64).sum();
        let wanted = rest.iter().map(|u| u.bytes as f64).sum::<f64>() * *of_device as f64 / all.max(1.0);
        let most = filled(rest, &[*of_device]);
        let mut count = 0;
        let mut taken = 0.0;
        for unit in rest.iter().take(most) {
            // A unit goes to the side that has more of it.
            if taken + unit.bytes as f64 / 2.0 > wanted {
                break;
            }
            taken += unit.bytes as f64;
            count += 1;
        }
        let leaves_each_one = rest.len().saturating_sub(later.len()).max(1);
        count = count.max(1).min(leaves_each_one).min(most);
        while count < most && filled(&rest[count..], later) < rest.len() - count {
            count += 1;
        }
        counts.push(count);
        rest = &rest[count..];
    }
    counts
}

/// What the last device would need for what has no place.
fn too_small(sizes: &Sizes, units: &[Unit], room: &[u64], tier: &[Budget]) -> PlaceError {
    let before = filled(units, &room[..room.len() - 1]);
    let rest = &units[before..];
    let last = &tier[tier.len() - 1];
    PlaceError::TooSmall {
        first_layer: rest.first().map_or(0, |unit| unit.layers.start),
        last_layer: rest.last().map_or(0, |unit| unit.layers.end - 1),
        wanted_bytes: rest.iter().map(|unit| unit.bytes).sum::<u64>() + sizes.working,
        device: last.device.clone(),
        budget_bytes: last.bytes.unwrap_or(u64::MAX),
    }
}
