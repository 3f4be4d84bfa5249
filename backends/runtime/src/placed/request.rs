//! What is asked of a placement.

use crate::error::BackendError;
use moe_run_graph::place::{ExpertUse, Placement};
use std::fmt;
use std::sync::Arc;

/// How the devices are to share a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// As fits.
    Auto,
    /// Whole layers.
    Layers,
    /// Everything but experts on the first device, experts on all.
    Experts,
    /// As it says.
    Given(Placement),
}

/// What is called with a placement, before anything is loaded: the placement, and lines for people. An error stops the loading.
pub type OnPlaced = Arc<dyn Fn(&Placement, &[String]) -> Result<(), BackendError> + Send + Sync>;

/// Devices that are to share a model.
#[derive(Clone)]
pub struct PlaceRequest {
    /// `BACKEND` or `BACKEND:DEVICE` each; one may be there twice.
    pub devices: Vec<String>,
    /// What devices of `devices` may take, in bytes.
    pub memory: Vec<(String, u64)>,
    /// How.
    pub wanted: Wanted,
    /// How often each expert was chosen: which go to the first devices.
    pub used: Option<ExpertUse>,
    /// Told what was chosen.
    pub placed: Option<OnPlaced>,
}

impl fmt::Debug for PlaceRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlaceRequest { devices, memory, wanted, used: _, placed: _ } = self;
        f.debug_struct("PlaceRequest")
            .field("devices", devices)
            .field("memory", memory)
            .field("wanted", wanted)
            .finish_non_exhaustive()
    }
}
