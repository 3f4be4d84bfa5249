//! One model on several devices: a backend made of backends, each of which runs a segment of the graph.
//!
//! Input: [`Part`]s, a backend with a device and a run of layers each. Output: a [`Backend`] whose weights and executables are
//! those of all parts: a step runs through them in order, and what crosses goes by the host's memory. Whoever drives it sees one
//! plan, whose launches are those of all devices, and the ids of the whole graph (`observer.rs`); states live with their layers
//! (`state.rs`). Every part takes the same activations and KV type. Deliberately absent: which device runs what, which
//! [`moe_run_graph::place`] decides, and overlap of layers: one device works at a time, but for the experts of a layer, which
//! several devices may share and compute at the same time (`experts.rs`).

mod executable;
mod experts;
mod observer;
mod request;
mod state;

pub use request::{OnPlaced, PlaceRequest, Wanted};

use crate::error::BackendError;
use crate::executable::{
    Backend, CompileOptions, DeviceInfo, Executable, Loaded, OnOpened, Opened, WeightSource, Weights,
};
use executable::PlacedExecutable;
use experts::{ExpertDevice, ExpertSource, Experts, Held, MAX_PAIRS};
use moe_run_graph::dump::KernelInfo;
use moe_run_graph::ir::{Graph, LaunchPattern, Node, StepSizes};
use moe_run_graph::passes::{
    DeviceExperts, ExpertPart, Launch, Plan, PlanOptions, Segment, TapSelection, Trunk, expert_parts,
    experts_of, merge_plans, none_alone, places_by_layer, plan, segments, trunk,
};
use moe_run_graph::place::PlaceError;
use moe_run_graph::quant::{ActBlock, ActProfile};
use std::collections::BTreeMap;
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
}

/// A device that holds experts.
#[derive(Clone)]
pub struct ExpertHome {
    /// What runs them.
    pub backend: Arc<dyn Backend>,
    /// The device of that backend.
    pub device: Option<String>,
    /// What it is called.
    pub label: String,
}

/// Layers whose experts several devices share.
#[derive(Clone)]
pub struct ExpertPlaces {
    /// Each holds an expert at least.
    pub devices: Vec<ExpertHome>,
    /// By layer, of each expert the index of its device.
    pub by_layer: BTreeMap<usize, Vec<usize>>,
}

/// A backend made of parts, whose layers follow each other.
#[derive(Clone)]
pub struct Placed {
    parts: Arc<[Part]>,
    experts: Option<Arc<ExpertPlaces>>,
}

/// A graph, cut.
struct Cut {
    /// What the segments are of: the model without the experts that are shared.
    graph: Graph,
    segments: Vec<Segment>,
    split: Option<Split>,
}

/// The experts that are shared.
struct Split {
    parts: Vec<ExpertPart>,
    trunk: Trunk,
    /// By part and expert, the device.
    owners: Vec<Vec<usize>>,
    /// By device.
    held: Vec<Held>,
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
        Ok(Placed { parts: parts.into(), experts: None })
    }

    /// The parts.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The same, with layers whose experts several devices share.
    #[must_use]
    pub fn with_experts(self, experts: ExpertPlaces) -> Placed {
        let experts = (!experts.by_layer.is_empty()).then(|| Arc::new(experts));
        Placed { experts, ..self }
    }

    /// The backends of all parts and of devices that hold experts.
    fn backends(&self) -> impl Iterator<Item = &dyn Backend> {
        let homes = self.experts.iter().flat_map(|experts| &experts.devices);
        self.parts.iter().map(|part| part.backend.as_ref()).chain(homes.map(|home| home.backend.as_ref()))
    }

    /// A graph in its segments, one a part, and its experts.
    fn cut(&self, graph: &Graph) -> Result<Cut, BackendError> {
        let layers: Vec<usize> =
            self.parts.iter().enumerate().flat_map(|(i, part)| part.layers.clone().map(move |_| i)).collect();
        if layers.len() != graph.num_layers {
            return Err(PlaceError::Layers { found: layers.len(), wanted: graph.num_layers }.into());
        }
        let split = self.experts.as_deref().map(|experts| split(graph, experts)).transpose()?;
        let graph = split.as_ref().map_or(graph, |split| &split.trunk.graph).clone();
        let segments = segments(&graph, &places_by_layer(&graph, &layers)).map_err(PlaceError::from)?;
        Ok(Cut { graph, segments, split })
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
        let cut = self.cut(graph)?;
        for (part, segment) in self.parts.iter().zip(&cut.segments) {
            let patterns = part.backend.patterns(max_sizes.tokens, &self.part_options(part, graph, options));
            let options = PlanOptions { taps, patterns: &patterns, alone: &none_alone, max_sizes };
            plans.push(plan(&segment.graph, &options)?);
        }
        Ok(merge_plans(&cut.graph, &plans.iter().collect::<Vec<_>>()))
    }

    /// What a part is compiled with: its device, and the arithmetic of all of them.
    fn part_options(&self, part: &Part, graph: &Graph, options: &CompileOptions) -> CompileOptions {
        self.options_on(part.device.as_ref(), part.text(graph.num_layers), options)
    }

    /// What is compiled with on a device; `text` says what it is.
    fn options_on(&self, device: Option<&String>, text: String, options: &CompileOptions) -> CompileOptions {
        let profile = self.profile(options);
        let opened = options.opened.clone().map(|tell| -> OnOpened {
            Arc::new(move |opened: &Opened<'_>| tell(&Opened { part: Some(&text), ..opened.clone() }))
        });
        CompileOptions {
            activations: Some(profile.into()),
            q8_super_block: profile.super_block().or(options.q8_super_block),
            device: device.cloned(),
            place: None,
            opened,
            ..options.clone()
        }
    }

    /// Does something for each part with its segment and options, and names the part in what fails.
    fn each<T>(
        &self,
        cut: &Cut,
        options: &CompileOptions,
        mut make: impl FnMut(usize, &Part, &Segment, &CompileOptions) -> Result<T, BackendError>,
    ) -> Result<Vec<T>, BackendError> {
        let parts = self.parts.iter().zip(&cut.segments).enumerate();
        parts
            .map(|(i, (part, segment))| {
                let options = self.part_options(part, &cut.graph, options);
                make(i, part, segment, &options).map_err(|error| failed(&part.label, error))
            })
            .collect()
    }

    /// Does something for each device that holds experts, with its graph and options.
    fn each_expert<T>(
        &self,
        graph: &Graph,
        cut: &Cut,
        options: &CompileOptions,
        mut make: impl FnMut(usize, &ExpertHome, &DeviceExperts, &CompileOptions) -> Result<T, BackendError>,
    ) -> Result<Vec<(T, DeviceExperts)>, BackendError> {
        let (Some(places), Some(split)) = (&self.experts, &cut.split) else { return Ok(Vec::new()) };
        let taps = |stage, layer| options.taps.contains(stage, layer);
        let homes = places.devices.iter().zip(&split.held).enumerate();
        homes
            .map(|(i, (home, held))| {
                let experts = experts_of(graph, &split.parts, &held.counts(), &taps)?;
                let own: usize = split.owners.iter().flatten().filter(|device| **device == i).count();
                let all: usize = split.owners.iter().map(Vec::len).sum();
                let text = format!("{own} of {all} experts on {}", home.label);
                let options = CompileOptions {
                    micro_batch: Some(MAX_PAIRS),
                    ctx_size: MAX_PAIRS,
                    max_logits_rows: 1,
                    taps: TapSelection::None,
                    ..self.options_on(home.device.as_ref(), text, options)
                };
                let made = make(i, home, &experts, &options).map_err(|error| failed(&home.label, error))?;
                Ok((made, experts))
            })
            .collect()
    }

    /// The source of a device's experts.
    fn expert_source(
        graph: &Graph,
        cut: &Cut,
        device: usize,
        home: &ExpertHome,
        source: &Arc<dyn WeightSource>,
    ) -> Result<Arc<dyn WeightSource>, BackendError> {
        match &cut.split {
            Some(split) if !home.backend.maps_weights() => {
                let base = Arc::clone(source);
                Ok(Arc::new(ExpertSource::new(base, graph, &split.parts, &split.held[device])?))
            }
            _ => Ok(Arc::clone(source)),
        }
    }

    /// The executable of all parts, and of devices that hold experts.
    fn put_together(
        &self,
        graph: &Graph,
        cut: Cut,
        executables: Vec<Box<dyn Executable>>,
        experts: Vec<(Box<dyn Executable>, DeviceExperts)>,
    ) -> Result<Box<dyn Executable>, BackendError> {
        let Cut { graph: trunk, segments, split } = cut;
        let experts = match (split, &self.experts) {
            (Some(split), Some(places)) => {
                let devices = experts.into_iter().zip(&places.devices);
                let devices = devices
                    .map(|((executable, own), home)| ExpertDevice::new(home.label.clone(), executable, own))
                    .collect::<Result<Vec<_>, _>>()?;
                let Split { parts, trunk, owners, held } = split;
                Some(Experts::new(graph, parts, trunk, &owners, &held, devices)?)
            }
            _ => None,
        };
        Ok(Box::new(PlacedExecutable::new(&trunk, &self.parts, &segments, executables, experts)?))
    }
}

/// Which experts of a graph are shared, and by whom.
fn split(graph: &Graph, places: &ExpertPlaces) -> Result<Split, BackendError> {
    let mut parts = expert_parts(graph);
    parts.retain(|part| places.by_layer.contains_key(&part.layer.index()));
    for (layer, of) in &places.by_layer {
        let part = parts.iter().find(|part| part.layer.index() == *layer);
        let (found, wanted) = (of.len(), part.map_or(0, |part| part.num_experts));
        if found != wanted {
            return Err(PlaceError::Experts { layer: *layer, found, wanted }.into());
        }
    }
    let owners: Vec<Vec<usize>> =
        parts.iter().map(|part| places.by_layer[&part.layer.index()].clone()).collect();
    if let Some(device) = owners.iter().flatten().find(|device| **device >= places.devices.len()) {
        let devices = places.devices.len();
        return Err(BackendError::Input(format!("an expert on device {device} of {devices}")));
    }
    let homes = places.devices.iter().enumerate();
    let held = homes.map(|(i, home)| Held::of(i, &owners, home.backend.maps_weights())).collect();
    let trunk = trunk(graph, &parts);
    Ok(Split { parts, trunk, owners, held })
}

/// An error of a device, which says where it arose if it does not yet.
fn failed(label: &str, error: BackendError) -> BackendError {
    match error {
        BackendError::OutOfMemory { what, wanted_bytes, available_bytes, advice } => {
            let what = format!("{label}: {what}");
            BackendError::OutOfMemory { what, wanted_bytes, available_bytes, advice }
        }
        error => error,
    }
}

impl Backend for Placed {
    fn name(&self) -> &'static str {
        let first = self.parts[0].backend.name();
        if self.backends().all(|backend| backend.name() == first) { first } else { NAME }
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        let mut devices: Vec<DeviceInfo> = Vec::new();
        for device in self.backends().map(|backend| backend.devices()) {
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
            |block: &ActBlock| self.backends().all(|backend| backend.q8_super_blocks().contains(block));
        let common: Vec<ActBlock> = first.iter().copied().filter(all_have).collect();
        match common.as_slice() {
            common if common.len() == first.len() => first,
            [ActBlock::X32] => &[ActBlock::X32],
            [ActBlock::X256] => &[ActBlock::X256],
            _ => &[],
        }
    }

    fn has_reference_bits(&self) -> bool {
        self.backends().all(|backend| backend.has_reference_bits())
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
        let cut = self.cut(graph)?;
        let parts = self.each(&cut, options, |_, part, segment, options| {
            part.backend.load(&segment.graph, Arc::clone(&source), options)
        })?;
        let experts = self.each_expert(graph, &cut, options, |i, home, own, options| {
            let source = Placed::expert_source(graph, &cut, i, home, &source)?;
            home.backend.load(&own.graph, source, options)
        })?;
        let experts = experts.into_iter().map(|(weights, _)| weights).collect();
        Ok(Arc::new(PlacedWeights { placed: self.clone(), parts, experts }))
    }

    fn load_and_compile(
        &self,
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Loaded, BackendError> {
        let cut = self.cut(graph)?;
        let loaded = self.each(&cut, options, |_, part, segment, options| {
            part.backend.load_and_compile(&segment.graph, Arc::clone(&source), options)
        })?;
        let of_experts = self.each_expert(graph, &cut, options, |i, home, own, options| {
            let source = Placed::expert_source(graph, &cut, i, home, &source)?;
            home.backend.load_and_compile(&own.graph, source, options)
        })?;
        let (parts, executables) = loaded.into_iter().unzip();
        let (mut experts, mut own) = (Vec::new(), Vec::new());
        for ((weights, executable), graph) in of_experts {
            experts.push(weights);
            own.push((executable, graph));
        }
        let executable = self.put_together(graph, cut, executables, own)?;
        Ok((Arc::new(PlacedWeights { placed: self.clone(), parts, experts }), executable))
    }
}

/// The weights of all parts, each on its device.
struct PlacedWeights {
    placed: Placed,
    parts: Vec<Arc<dyn Weights>>,
    experts: Vec<Arc<dyn Weights>>,
}

impl Weights for PlacedWeights {
    fn size_bytes(&self) -> u64 {
        self.parts.iter().chain(&self.experts).map(|weights| weights.size_bytes()).sum()
    }

    fn compile(&self, graph: &Graph, options: &CompileOptions) -> Result<Box<dyn Executable>, BackendError> {
        let cut = self.placed.cut(graph)?;
        let executables = self
            .placed
            .each(&cut, options, |i, _, segment, options| self.parts[i].compile(&segment.graph, options))?;
        let experts = self.placed.each_expert(graph, &cut, options, |i, _, own, options| {
            self.experts[i].compile(&own.graph, options)
        })?;
        self.placed.put_together(graph, cut, executables, experts)
    }
}
