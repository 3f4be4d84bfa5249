//! Several devices for one model: from what is asked for to a backend made of backends.
//!
//! Input: a lowered graph and a [`PlaceRequest`]. Output: [`Placed`], and two lines for people: what went where, and why.

use crate::registry;
use moe_run_graph::ir::{Graph, StateDecl, StepSizes};
use moe_run_graph::passes::{ExpertPart, PlanOptions, TapSelection, cuts, expert_parts, none_alone, plan};
use moe_run_graph::place::{Budget, ExpertUse, PlaceError, Placement, Sizes, by_experts, by_layers};
use moe_run_runtime::executable::{MICRO_BATCH, PoolSize};
use moe_run_runtime::placed::{ExpertHome, ExpertPlaces, Part, PlaceRequest, Placed, Wanted};
use moe_run_runtime::{Backend, BackendError, CompileOptions, DeviceKind};
use std::sync::Arc;

/// Of a GPU's memory, what is left for its driver and others: a tenth.
pub const RESERVE: u64 = 10;

/// A device that is named: its backend, and which of that backend's.
struct Named {
    backend: Arc<dyn Backend>,
    device: Option<String>,
}

/// Whether a name is that of a device with its backend: `cpu`, `cuda:0`.
///
/// # Errors
/// [`BackendError::UnknownBackend`].
fn named(text: &str) -> Result<Named, BackendError> {
    let (backend, device) = match text.split_once(':') {
        Some((backend, device)) => (backend, Some(device.to_owned())),
        None => (text, None),
    };
    // A device that has layers and experts is opened once.
    let backend = registry::by_name(backend)?;
    let backend = backend.sharing().unwrap_or(backend);
    Ok(Named { backend: Arc::from(backend), device })
}

/// Checks the names of devices, before a model is there.
///
/// # Errors
/// [`BackendError::UnknownBackend`]; [`BackendError::Input`] for a budget of a device that is not among them.
pub fn check(request: &PlaceRequest) -> Result<(), BackendError> {
    for device in devices_of(request) {
        named(device)?;
    }
    match request.memory.iter().find(|(device, _)| !devices_of(request).contains(device)) {
        None => Ok(()),
        Some((device, _)) => Err(BackendError::Input(format!(
            "--device-memory {device}: not among the devices {}",
            devices_of(request).join(", ")
        ))),
    }
}

/// The devices: those of a placement that is given, else those that are named.
fn devices_of(request: &PlaceRequest) -> &[String] {
    match &request.wanted {
        Wanted::Given(placement) if request.devices.is_empty() => &placement.devices,
        Wanted::Given(_) | Wanted::Auto | Wanted::Layers | Wanted::Experts => &request.devices,
    }
}

/// Places a model, tells what was chosen, and makes the backend.
///
/// # Errors
/// As [`check`]; [`BackendError::Place`] where the devices cannot share the model.
pub fn place(
    graph: &Graph,
    request: &PlaceRequest,
    options: &CompileOptions,
) -> Result<Placed, BackendError> {
    check(request)?;
    let labels = devices_of(request);
    let devices = labels.iter().map(|label| named(label)).collect::<Result<Vec<Named>, _>>()?;
    let (cuts, parts) = (cuts(graph), expert_parts(graph));
    let (placement, why) = match &request.wanted {
        Wanted::Given(placement) => {
            if placement.devices.len() != labels.len() {
                let (found, wanted) = (labels.len(), placement.devices.len());
                return Err(PlaceError::Devices { found, wanted }.into());
            }
            let devices = labels.to_vec();
            (Placement { devices, ..placement.clone() }, "as the given placement says".to_owned())
        }
        Wanted::Auto | Wanted::Layers | Wanted::Experts => {
            let first = devices.first().ok_or(PlaceError::NoDevice)?;
            let sizes = sizes(graph, first.backend.as_ref(), options)?;
            let budgets = budgets(request)?;
            let (placement, how) =
                choose(graph, &parts, &cuts, &sizes, &budgets, &request.wanted, request.used.as_ref())?;
            (placement, why(&sizes, &budgets, options, how))
        }
    };
    placement.check(&cuts, &parts)?;
    let part = |(device, layers): (usize, std::ops::Range<usize>)| Part {
        backend: Arc::clone(&devices[device].backend),
        device: devices[device].device.clone(),
        label: labels[device].clone(),
        layers,
    };
    let placed = Placed::new(placement.runs().into_iter().map(part).collect())?;
    let mut homes: Vec<usize> = placement.experts.values().flatten().copied().collect();
    homes.sort_unstable();
    homes.dedup();
    let home = |device: &usize| ExpertHome {
        backend: Arc::clone(&devices[*device].backend),
        device: devices[*device].device.clone(),
        label: labels[*device].clone(),
    };
    let number = |device: &usize| homes.binary_search(device).unwrap_or_default();
    let by_layer = placement.experts.iter();
    let by_layer = by_layer.map(|(layer, of)| (*layer, of.iter().map(number).collect())).collect();
    let placed = placed.with_experts(ExpertPlaces { devices: homes.iter().map(home).collect(), by_layer });
    if let Some(told) = &request.placed {
        told(&placement, &[what(&placement), why])?;
    }
    Ok(placed)
}

/// The devices with what each may take.
///
/// # Errors
/// As [`check`].
pub fn budgets(request: &PlaceRequest) -> Result<Vec<Budget>, BackendError> {
    check(request)?;
    let budget = |label: &String| {
        let named = named(label)?;
        Ok(Budget {
            device: label.clone(),
            backend: named.backend.name().to_owned(),
            bytes: budget(label, &named, request),
        })
    };
    devices_of(request).iter().map(budget).collect()
}

/// Chooses a placement, and says how; `cuts` and `parts` are the graph's. A placement that is given is not chosen: then layers
/// are placed.
///
/// # Errors
/// [`PlaceError`] where the devices cannot share the model.
pub fn choose(
    graph: &Graph,
    parts: &[ExpertPart],
    cuts: &[bool],
    sizes: &Sizes,
    budgets: &[Budget],
    wanted: &Wanted,
    used: Option<&ExpertUse>,
) -> Result<(Placement, &'static str), PlaceError> {
    const EXPERTS: &str = "experts shared, all else on the first";
    let first = budgets.first().ok_or(PlaceError::NoDevice)?;
    let is_one = budgets.iter().all(|budget| budget.backend == first.backend);
    let fits_first = first.bytes.is_none_or(|bytes| sizes.total() <= bytes);
    let experts = || by_experts(graph, parts, sizes, budgets, used);
    match wanted {
        Wanted::Experts => return Ok((experts()?, EXPERTS)),
        // Different devices work at the same time where they share experts.
        Wanted::Auto if !is_one && !fits_first => {
            if let Ok(placement) = experts() {
                return Ok((placement, EXPERTS));
            }
        }
        Wanted::Auto | Wanted::Layers | Wanted::Given(_) => {}
    }
    let placement = by_layers(sizes, cuts, budgets)?;
    Ok((placement, "filled in this order, neighbours of one backend sharing"))
}

/// What a device may take: what is asked for, else nine tenths of what a GPU has. Weights on the host stay in the mapped file,
/// which may be larger than its memory.
fn budget(label: &str, named: &Named, request: &PlaceRequest) -> Option<u64> {
    if let Some((_, bytes)) = request.memory.iter().find(|(device, _)| device == label) {
        return Some(*bytes);
    }
    let devices = named.backend.devices().unwrap_or_default();
    let is_it = |index: usize, name: &str| match &named.device {
        Some(device) => *device == index.to_string() || device == name,
        None => index == 0,
    };
    let device = devices.iter().find(|device| is_it(device.index, &device.name))?;
    match device.kind {
        DeviceKind::Cpu => None,
        DeviceKind::DiscreteGpu
        | DeviceKind::IntegratedGpu
        | DeviceKind::Software
        | DeviceKind::Unsupported => device.memory_bytes.map(|bytes| bytes - bytes / RESERVE),
    }
}

/// What the model takes; beside it every device needs the values between launches of a prompt's step.
///
/// # Errors
/// What planning reports.
pub fn sizes(graph: &Graph, backend: &dyn Backend, options: &CompileOptions) -> Result<Sizes, BackendError> {
    let tokens = options.micro_batch.unwrap_or(MICRO_BATCH).clamp(1, options.ctx_size.max(1));
    let max_sizes = StepSizes { tokens, logits_rows: options.max_logits_rows, cached: options.ctx_size };
    let patterns = backend.patterns(tokens, options);
    let taps = TapSelection::None;
    let planned =
        plan(graph, &PlanOptions { taps: &taps, patterns: &patterns, alone: &none_alone, max_sizes })?;
    let pool = PoolSize::of_one(options.ctx_size, tokens);
    let state_bytes = |state: &StateDecl| pool.state_bytes(state, options.kv_type);
    Ok(Sizes::of(graph, &state_bytes, planned.memory.arena_bytes as u64))
}

/// "placed: layers 0-11 on cuda:0, layers 12-47 on cpu".
fn what(placement: &Placement) -> String {
    let runs = placement.runs().into_iter().map(|(device, layers)| {
        let name = &placement.devices[device];
        match layers.len() {
            1 => format!("layer {} on {name}", layers.start),
            _ => format!("layers {}-{} on {name}", layers.start, layers.end - 1),
        }
    });
    let mut text = format!("placed: {}", runs.collect::<Vec<_>>().join(", "));
    let experts: Vec<usize> = placement.experts.values().flatten().copied().collect();
    for (i, name) in placement.devices.iter().enumerate() {
        let of_device = experts.iter().filter(|device| **device == i).count();
        if of_device > 0 {
            text.push_str(&format!("; {of_device} of {} experts on {name}", experts.len()));
        } else if !placement.layers.contains(&i) {
            text.push_str(&format!("; nothing on {name}"));
        }
    }
    text
}

/// "why: the model takes 17.2 GiB …; cuda:0 may take 8 GiB, cpu as much as there is".
fn why(sizes: &Sizes, budgets: &[Budget], options: &CompileOptions, how: &str) -> String {
    let of = |budget: &Budget| match budget.bytes {
        Some(bytes) => format!("{} may take {}", budget.device, mib(bytes)),
        None => format!("{} may take all that there is", budget.device),
    };
    format!(
        "why: weights, states of {} tokens and working memory take {}; {}; {how}",
        options.ctx_size,
        mib(sizes.total()),
        budgets.iter().map(of).collect::<Vec<_>>().join(", ")
    )
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
