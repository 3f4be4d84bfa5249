//! Which device holds what of a model that is more than one device's memory.
//!
//! Input: a lowered graph, devices with what each may take of memory, and what a state takes. Output: a [`Placement`]: the device of
//! each layer, with the reasons for people. It is written to and read from JSON, so that what was chosen can be kept, changed and
//! given. Deliberately absent: opening devices, and cutting the graph, which is [`crate::passes::segments`]'.

mod experts;
mod forecast;
mod layers;
mod sizes;

pub use experts::{ExpertUse, by_experts, expert_bytes};
pub use forecast::{Forecast, LayerForecast, Speed, StateBytes, forecast};
pub use layers::by_layers;
pub use sizes::{Sizes, weight_bytes};

use crate::passes::{ExpertPart, SegmentError};
use crate::shown::shown;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of a placement's file.
pub const SCHEMA_VERSION: u32 = 1;

/// A device that may take part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// What it is called, as `--device` takes it: `cuda:0`. A device may be there twice.
    pub device: String,
    /// Its backend: neighbours of one backend share what falls to them.
    pub backend: String,
    /// What it may take; `None` where nobody knows.
    pub bytes: Option<u64>,
}

/// Where everything is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The devices, in the order of the layers.
    pub devices: Vec<String>,
    /// Of each layer, the device that runs it: an index into `devices`.
    pub layers: Vec<usize>,
    /// By layer, of each of its experts the device that holds it. Layers that are not there have their experts with them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub experts: BTreeMap<usize, Vec<usize>>,
}

/// A placement that cannot be made, or is not one.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The devices together do not hold the model.
    #[error(
        "layers {first_layer} to {last_layer} need {wanted_bytes} bytes on {device}, which may take {budget_bytes}; the least \
         that would do with the other devices as they are: --device-memory {device}={wanted_bytes}"
    )]
    TooSmall {
        /// The first layer without a place.
        first_layer: usize,
        /// The last.
        last_layer: usize,
        /// What the last device would need for them, and for what it has.
        wanted_bytes: u64,
        /// The last device.
        device: String,
        /// What it may take.
        budget_bytes: u64,
    },
    /// No device.
    #[error("no device is named; give --device a list such as cuda:0,cpu")]
    NoDevice,
    /// A file that is no placement.
    #[error("{}: {detail}; moe-run … --save-placement writes one", shown(.origin))]
    File {
        /// Where it comes from.
        origin: String,
        /// What is wrong.
        detail: String,
    },
    /// A placement of another model.
    #[error("a placement of {found} layers, for a model of {wanted}")]
    Layers {
        /// In the placement.
        found: usize,
        /// In the model.
        wanted: usize,
    },
    /// A cut between layers that share a cache.
    #[error("layers {0} and {1} are on two devices, and share a cache: wanted both on one")]
    Cut(usize, usize),
    /// Experts are to be shared, and there are none.
    #[error("the model has no experts that a router chooses, which devices could share; try --place layers")]
    NoExperts,
    /// Experts that the model does not have.
    #[error("{found} experts in layer {layer} are placed or counted, and the model has {wanted} there")]
    Experts {
        /// The layer.
        layer: usize,
        /// In the placement.
        found: usize,
        /// In the model.
        wanted: usize,
    },
    /// Other devices than the placement's.
    #[error("{found} devices are named, for a placement on {wanted}; wanted as many, or none")]
    Devices {
        /// Named.
        found: usize,
        /// In the placement.
        wanted: usize,
    },
    /// A graph that cannot be cut so.
    #[error(transparent)]
    Segment(#[from] SegmentError),
}

impl Placement {
    /// Reads JSON.
    ///
    /// # Errors
    /// [`PlaceError::File`], where a layer's device is not in the list, too.
    pub fn from_json(origin: &str, text: &str) -> Result<Placement, PlaceError> {
        let wrong = |detail: String| PlaceError::File { origin: origin.to_owned(), detail };
        let placement: Placement = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if placement.schema_version != SCHEMA_VERSION {
            let found = placement.schema_version;
            return Err(wrong(format!("schema_version {found}, wanted {SCHEMA_VERSION}")));
        }
        let devices = placement.devices.len();
        let all = placement.layers.iter().chain(placement.experts.values().flatten());
        if let Some(device) = all.into_iter().find(|device| **device >= devices) {
            return Err(wrong(format!("device {device} of {devices}")));
        }
        Ok(placement)
    }

    /// Refuses a placement that the model cannot have; `cuts` is [`crate::passes::cuts`]' of the graph, `parts` are its experts.
    ///
    /// # Errors
    /// [`PlaceError::Layers`], [`PlaceError::Cut`], [`PlaceError::Experts`].
    pub fn check(&self, cuts: &[bool], parts: &[ExpertPart]) -> Result<(), PlaceError> {
        for (layer, of) in &self.experts {
            let part = parts.iter().find(|part| part.layer.index() == *layer);
            let wanted = part.map_or(0, |part| part.num_experts);
            if of.len() != wanted {
                return Err(PlaceError::Experts { layer: *layer, found: of.len(), wanted });
            }
        }
        if self.layers.len() != cuts.len() {
            return Err(PlaceError::Layers { found: self.layers.len(), wanted: cuts.len() });
        }
        let at = (1..cuts.len()).find(|layer| self.layers[layer - 1] != self.layers[*layer] && !cuts[*layer]);
        at.map_or(Ok(()), |layer| Err(PlaceError::Cut(layer - 1, layer)))
    }

    /// Runs of layers of one device each: the device and its layers.
    #[must_use]
    pub fn runs(&self) -> Vec<(usize, std::ops::Range<usize>)> {
        let mut runs: Vec<(usize, std::ops::Range<usize>)> = Vec::new();
        for (layer, device) in self.layers.iter().enumerate() {
            match runs.last_mut() {
                Some((of, layers)) if of == device => layers.end = layer + 1,
                _ => runs.push((*device, layer..layer + 1)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests;
