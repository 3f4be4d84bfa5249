//! An open device, with what has been compiled for it.

use super::device::Device;
use super::pipelines::Pipelines;
use std::sync::{Arc, Mutex};

/// An open device with the pipelines that have been compiled for it.
#[derive(Clone)]
pub struct Opened {
    pub(super) device: Arc<Device>,
    pub(super) pipelines: Arc<Mutex<Pipelines>>,
}

impl Opened {
    pub(super) fn new(device: Device) -> Opened {
        Opened { device: Arc::new(device), pipelines: Arc::default() }
    }
}
