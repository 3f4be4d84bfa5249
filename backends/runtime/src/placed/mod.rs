//! One model on several devices: a backend made of backends, each of which runs a segment of the graph.
//!
//! Input: [`Part`]s, a backend with a device and a run of layers each. Output: a [`Backend`] whose weights and executables are
//! those of all parts: a step runs through them in order, and what crosses goes by the host's memory. Whoever drives it sees one
//! plan, whose launches are those of all devices, and the ids of the whole graph (`observer.rs`); states live with their layers
//! (`state.rs`). Every part takes the same activations and KV type. Deliberately absent: which device runs what, which
//! [`moe_run_graph::place`] decides, and overlap: one device works at a time.

mod executable;
mod observer;
mod request;
mod state;

pub use request::{OnPlaced, PlaceRequest, Wanted};

use crate::error::BackendError;
use crate::executable::{
    Backend, CompileOptions, DeviceInfo, Executable, Loaded, Opened, WeightSource, Weights,
};
use executable::PlacedExecutable;
use moe_run_graph::dump::KernelInfo;
use moe_run_graph::ir::{Graph, LaunchPattern, Node, StepSizes};
use moe_run_graph::passes::{
    Launch, Plan, PlanOptions, Segment, TapSelection, merge_plans, none_alone, places_by_layer, plan,
    segments,
};
use moe_run_graph::place::PlaceError;
use moe_run_graph::quant::{ActBlock, ActProfile};
use std::ops::Range;
use std::sync::Arc;

/// The name of a backend made of different ones.
pub const NAME: &str = "placed";

/// A device and the layers that it runs. What comes before the first layer runs with it, what comes behind the last with that.
#[derive(Clone)]
pub struct Part {
    /// What runs them.
    pub backend: Arc<dyn Backend>,
    /// The device of that backend, as [`CompileOptions::device`]; `None`: the backend's choice.
    pub device: Option<String>,
    /// What it is called: `cuda:0`.
    pub label: String,
    /// The layers.
    pub layers: Range<usize>,
}

impl Part {
    /// "layers 0-11 of 48 on cuda:0".
    fn text(&self, num_layers: usize) -> String {
        let layers = match self.layers.len() {
            1 => format!("layer {}", self.layers.start),
            _ => format!("layers {}-{}", self.layers.start, self.layers.end.saturating_sub(1)),
        };
        format!("{layers} of {num_layers} on {}", self.label)
    }

    /// An error of this part, which says where it arose if it does not yet.
    fn failed(&self, error: BackendError) -> BackendError {
        match error {
            BackendError::OutOfMemory { what, wanted_bytes, available_bytes, advice } => {
                let what = format!("{}: {what}", self.label);
                BackendError::OutOfMemory { what, wanted_bytes, available_bytes, advice }
            }
            error => error,
        }
    }
}

/// A backend made of parts, whose layers follow each other.
#[derive(Clone)]
pub struct Placed {
    parts: Arc<[Part]>,
}

impl Placed {
    /// Puts parts together.
    ///
    /// # Errors
    /// [`BackendError::Input`] without a part, or where the layers of one do not follow those of the part before.
    pub fn new(parts: Vec<Part>) -> Result<Placed, BackendError> {
        let mut next = 0;
        for part in &parts {
            if part.layers.start != next || part.layers.is_empty() {
                return Err(BackendError::Input(format!(
                    "layers {:?} on {}, wanted some from layer {next} on",
                    part.layers, part.label
                )));
            }
            next = part.layers.end;
        }
        if parts.is_empty() {
            return Err(BackendError::Input("no device for any layer".into()));
        }
        Ok(Placed { parts: parts.into() })
    }

    /// The parts.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The segments of a graph, one a part.
    fn segments(&self, graph: &Graph) -> Result<Vec<Segment>, BackendError> {
        let layers: Vec<usize> =
            self.parts.iter().enumerate().flat_map(|(i, part)| part.layers.clone().map(move |_| i)).collect();
        if layers.len() != graph.num_layers {
            return Err(PlaceError::Layers { found: layers.len(), wanted: graph.num_layers }.into());
        }
        Ok(segments(graph, &places_by_layer(graph, &layers)).map_err(PlaceError::from)?)
    }

    /// The part that runs a node.
    fn part_of(&self, graph: &Graph, node: &Node) -> &Part {
        let last = &self.parts[self.parts.len() - 1];
        let first_layer = graph.nodes.iter().position(|node| node.layer.is_some());
        let at = graph.nodes.iter().position(|other| other.id == node.id);
        match node.layer {
            Some(layer) => self.parts.iter().find(|p| p.layers.contains(&layer.index())).unwrap_or(last),
            None if at < first_layer => &self.parts[0],
            None => last,
        }
    }

    /// The plan of a step of so many tokens, made without a device: of each part its backend's.
    ///
    /// # Errors
    /// [`BackendError::Input`] for a graph of other layers, and what planning reports.
    pub fn plan(
        &self,
        graph: &Graph,
        taps: &TapSelection,
        max_sizes: StepSizes,
        options: &CompileOptions,
    ) -> Result<Plan, BackendError> {
        let mut plans = Vec::new();
        for (part, segment) in self.parts.iter().zip(self.segments(graph)?) {
            let patterns = part.backend.patterns(max_sizes.tokens, &self.part_options(part, graph, options));
            let options = PlanOptions { taps, patterns: &patterns, alone: &none_alone, max_sizes };
            plans.push(plan(&segment.graph, &options)?);
        }
        Ok(merge_plans(graph, &plans.iter().collect::<Vec<_>>()))
    }

    /// What a part is compiled with: its device, and the arithmetic of all of them.
    fn part_options(&self, part: &Part, graph: &Graph, options: &CompileOptions) -> CompileOptions {
        let profile = self.profile(options);
        let text = part.text(graph.num_layers);
        let opened = options.opened.clone().map(|tell| -> crate::executable::OnOpened {
            Arc::new(move |opened: &Opened<'_>| tell(&Opened { part: Some(&text), ..opened.clone() }))
        });
        CompileOptions {
            activations: Some(profile.into()),
            q8_super_block: profile.super_block().or(options.q8_super_block),
            device: part.device.clone(),
            place: None,
            opened,
            ..options.clone()
        }
    }

    /// Does something for each part with its segment and options, and names the part in what fails.
    fn each<T>(
        &self,
        graph: &Graph,
        options: &CompileOptions,
        mut make: impl FnMut(usize, &Part, &Segment, &CompileOptions) -> Result<T, BackendError>,
    ) -> Result<Vec<T>, BackendError> {
        let segments = self.segments(graph)?;
        let parts = self.parts.iter().zip(&segments).enumerate();
        parts
            .map(|(i, (part, segment))| {
                let options = self.part_options(part, graph, options);
                make(i, part, segment, &options).map_err(|error| part.failed(error))
            })
            .collect()
    }

    /// The executable of all parts.
    fn put_together(
        &self,
        graph: &Graph,
        executables: Vec<Box<dyn Executable>>,
    ) -> Result<Box<dyn Executable>, BackendError> {
        let segments = self.segments(graph)?;
        Ok(Box::new(PlacedExecutable::new(graph, &self.parts, &segments, executables)?))
    }
}

impl Backend for Placed {
    fn name(&self) -> &'static str {
        let first = self.parts[0].backend.name();
        if self.parts.iter().all(|part| part.backend.name() == first) { first } else { NAME }
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        let mut devices: Vec<DeviceInfo> = Vec::new();
        for device in self.parts.iter().map(|part| part.backend.devices()) {
            for device in device? {
                if !devices.contains(&device) {
                    devices.push(device);
                }
            }
        }
        Ok(devices)
    }

    /// Those of the parts' one backend; none where they have several, whose plans [`Placed::plan`] makes.
    fn patterns(&self, tokens: usize, options: &CompileOptions) -> Vec<LaunchPattern> {
        if self.name() == NAME { Vec::new() } else { self.parts[0].backend.patterns(tokens, options) }
    }

    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), BackendError> {
        self.part_of(graph, node).backend.supports(graph, node)
    }

    fn q8_super_blocks(&self) -> &'static [ActBlock] {
        let first = self.parts[0].backend.q8_super_blocks();
        let all_have =
            |block: &ActBlock| self.parts.iter().all(|p| p.backend.q8_super_blocks().contains(block));
        let common: Vec<ActBlock> = first.iter().copied().filter(all_have).collect();
        match common.as_slice() {
            common if common.len() == first.len() => first,
            [ActBlock::X32] => &[ActBlock::X32],
            [ActBlock::X256] => &[ActBlock::X256],
            _ => &[],
        }
    }

    fn has_reference_bits(&self) -> bool {
        self.parts.iter().all(|part| part.backend.has_reference_bits())
    }

    /// The first part's, in a block that all of them have.
    fn profile(&self, options: &CompileOptions) -> ActProfile {
        let first = self.parts[0].backend.profile(options);
        let block = self.q8_super_blocks().first().copied();
        match (first, options.q8_super_block, block) {
            (ActProfile::Q8 { .. }, None, Some(k_block)) => ActProfile::Q8 { k_block },
            (profile, _, _) => profile,
        }
    }

    fn kernel(&self, plan: &Plan, launch: &Launch, options: &CompileOptions) -> Option<KernelInfo> {
        let node = plan.launch_nodes(launch).next()?;
        let part = self.part_of(&plan.graph, node);
        part.backend.kernel(plan, launch, &self.part_options(part, &plan.graph, options))
    }

    fn load(
        &self,
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Arc<dyn Weights>, BackendError> {
        let parts = self.each(graph, options, |_, part, segment, options| {
            part.backend.load(&segment.graph, Arc::clone(&source), options)
        })?;
        Ok(Arc::new(PlacedWeights { placed: self.clone(), parts }))
    }

    fn load_and_compile(
        &self,
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Loaded, BackendError> {
        let loaded = self.each(graph, options, |_, part, segment, options| {
            part.backend.load_and_compile(&segment.graph, Arc::clone(&source), options)
        })?;
        let (parts, executables) = loaded.into_iter().unzip();
        let executable = self.put_together(graph, executables)?;
        Ok((Arc::new(PlacedWeights { placed: self.clone(), parts }), executable))
    }
}

/// The weights of all parts, each on its device.
struct PlacedWeights {
    placed: Placed,
    parts: Vec<Arc<dyn Weights>>,
}

impl Weights for PlacedWeights {
    fn size_bytes(&self) -> u64 {
        self.parts.iter().map(|weights| weights.size_bytes()).sum()
    }

    fn compile(&self, graph: &Graph, options: &CompileOptions) -> Result<Box<dyn Executable>, BackendError> {
        let executables = self
            .placed
            .each(graph, options, |i, _, segment, options| self.parts[i].compile(&segment.graph, options))?;
        self.placed.put_together(graph, executables)
    }
}
