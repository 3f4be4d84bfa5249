//! A backend that opens its device once: for many small graphs, one after another.
//!
//! Input: a backend that can load weights to what it has opened ([`Opens`]). Output: the same backend, whose weights share
//! that. Deliberately absent: sharing between backends, and between devices.

use crate::error::BackendError;
use crate::executable::{Backend, CompileOptions, DeviceInfo, WeightSource, Weights};
use moe_run_graph::dump::KernelInfo;
use moe_run_graph::ir::{Graph, LaunchPattern, Node};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::{ActBlock, ActProfile};
use std::sync::{Arc, Mutex, PoisonError};

/// A backend whose weights, and the executables made from them, can share a device.
pub trait Opens: Backend {
    /// An open device, with what has been compiled for it; clones are the same device.
    type Opened: Clone + Send;

    /// Opens the device of `--device`.
    ///
    /// # Errors
    /// [`BackendError`] where there is none that can be used.
    fn open(&self, device: Option<&str>) -> Result<Self::Opened, BackendError>;

    /// Whether it can still be used: after a failure it is opened anew.
    fn is_sound(opened: &Self::Opened) -> bool;

    /// [`Backend::load`] to what `open` gives, which is called after everything that can be refused without a device.
    ///
    /// # Errors
    /// As [`Backend::load`].
    fn load_on(
        &self,
        open: &dyn Fn() -> Result<Self::Opened, BackendError>,
        graph: &Graph,
        source: &dyn WeightSource,
        options: &CompileOptions,
    ) -> Result<Arc<dyn Weights>, BackendError>;
}

/// A backend that keeps the device it opened last.
pub struct Sharing<B: Opens> {
    backend: B,
    /// The device, by the name that it was asked for with.
    opened: Mutex<Option<(Option<String>, B::Opened)>>,
}

impl<B: Opens> Sharing<B> {
    /// Nothing is open yet.
    #[must_use]
    pub fn new(backend: B) -> Sharing<B> {
        Sharing { backend, opened: Mutex::new(None) }
    }

    /// The open device of this name; opened where there is none, another, or one that failed.
    ///
    /// # Errors
    /// What [`Opens::open`] reports.
    pub fn opened(&self, device: Option<&str>) -> Result<B::Opened, BackendError> {
        let mut held = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, opened)) = held.as_ref()
            && name.as_deref() == device
            && B::is_sound(opened)
        {
            return Ok(opened.clone());
        }
        *held = None; // before another is opened: both may not fit
        let opened = self.backend.open(device)?;
        *held = Some((device.map(str::to_owned), opened.clone()));
        Ok(opened)
    }
}

impl<B: Opens> Backend for Sharing<B> {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        self.backend.devices()
    }

    fn patterns(&self, tokens: usize, options: &CompileOptions) -> Vec<LaunchPattern> {
        self.backend.patterns(tokens, options)
    }

    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), BackendError> {
        self.backend.supports(graph, node)
    }

    fn q8_super_blocks(&self) -> &'static [ActBlock] {
        self.backend.q8_super_blocks()
    }

    fn has_reference_bits(&self) -> bool {
        self.backend.has_reference_bits()
    }

    fn maps_weights(&self) -> bool {
        self.backend.maps_weights()
    }

    fn profile(&self, options: &CompileOptions) -> ActProfile {
        self.backend.profile(options)
    }

    fn kernel(&self, plan: &Plan, launch: &Launch, options: &CompileOptions) -> Option<KernelInfo> {
        self.backend.kernel(plan, launch, options)
    }

    fn load(
        &self,
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Arc<dyn Weights>, BackendError> {
        let open = || self.opened(options.device.as_deref());
        self.backend.load_on(&open, graph, source.as_ref(), options)
    }
}
