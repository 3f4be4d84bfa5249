//! Which backend runs a model, where none is named: the fastest that has every operation, a device that it takes by itself, and
//! the memory. Deliberately absent: saying so, which is the caller's ([`Chosen`]).

use crate::{placement, registry};
use moe_run_graph::ir::Graph;
use moe_run_runtime::{Backend, BackendError, CompileOptions, DeviceKind, Executable, WeightSource, Weights};
use std::sync::Arc;

/// The name that leaves the choice to this module.
pub const AUTO: &str = "auto";

/// A backend that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// It.
    pub backend: &'static str,
    /// Those that would have come first, each with the reason why it was not taken.
    pub not_taken: Vec<String>,
}

/// A model's weights on a device, and an executable made from them.
pub struct Loaded {
    /// For more executables.
    pub weights: Arc<dyn Weights>,
    /// The first.
    pub executable: Box<dyn Executable>,
}

/// The named backend; for [`AUTO`] the first that can run the graph, and the choice to tell of; where the options name several
/// devices, the backend made of them. Nothing is opened.
///
/// # Errors
/// [`BackendError::UnknownBackend`], [`BackendError::NoBackend`]; as [`placement::place`].
pub fn backend(
    graph: &Graph,
    name: &str,
    options: &CompileOptions,
) -> Result<(Box<dyn Backend>, Option<Chosen>), BackendError> {
    if let Some(request) = &options.place {
        return Ok((Box::new(placement::place(graph, request, options)?), None));
    }
    if name != AUTO {
        return Ok((registry::by_name(name)?, None));
    }
    let mut not_taken = Vec::new();
    match candidates().find(|b| can_run(b.as_ref(), graph, &mut not_taken)) {
        Some(backend) => {
            let chosen = Chosen { backend: backend.name(), not_taken };
            Ok((backend, Some(chosen)))
        }
        None => Err(BackendError::NoBackend { reasons: not_taken }),
    }
}

/// Loads a graph's weights to the named backend and compiles it; for [`AUTO`] on the first that can and has the memory; where the
/// options name several devices, on those.
/// `options` makes what a backend is opened with, of the choice where there is one.
///
/// # Errors
/// As [`backend`], [`Backend::load`] and [`Weights::compile`]; for [`AUTO`] where nothing has the memory, the last one's
/// arithmetic.
pub fn load(
    graph: &Graph,
    source: &Arc<dyn WeightSource>,
    name: &str,
    options: impl Fn(Option<&Chosen>) -> CompileOptions,
) -> Result<Loaded, BackendError> {
    let load = |backend: &dyn Backend, chosen: Option<&Chosen>| {
        let (weights, executable) = backend.load_and_compile(graph, Arc::clone(source), &options(chosen))?;
        Ok(Loaded { weights, executable })
    };
    let asked = options(None);
    if let Some(request) = &asked.place {
        return load(&placement::place(graph, request, &asked)?, None);
    }
    if name != AUTO {
        return load(registry::by_name(name)?.as_ref(), None);
    }
    let mut reasons = Vec::new();
    let mut memory = None;
    for backend in candidates() {
        if !can_run(backend.as_ref(), graph, &mut reasons) {
            continue;
        }
        let chosen = Chosen { backend: backend.name(), not_taken: reasons.clone() };
        match load(backend.as_ref(), Some(&chosen)) {
            Ok(loaded) => return Ok(loaded),
            // A device that is there, and cannot be opened now.
            Err(error @ BackendError::NoDevice { .. }) => reasons.push(error.to_string()),
            Err(error @ BackendError::OutOfMemory { .. }) => {
                let (text, name) = (error.to_string(), format!("backend {}", backend.name()));
                reasons.push(if text.starts_with(&name) { text } else { format!("{name}: {text}") });
                memory = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    // The last one's arithmetic says what would fit.
    Err(memory.unwrap_or(BackendError::NoBackend { reasons }))
}

/// What is looked at, fastest first. The reference is never chosen: it defines the operations and is slow.
fn candidates() -> impl Iterator<Item = Box<dyn Backend>> {
    registry::all().into_iter().filter(|b| b.name() != moe_run_reference::NAME)
}

/// Whether a backend has a device that it takes by itself, and every operation of the graph; if not, why.
fn can_run(backend: &dyn Backend, graph: &Graph, reasons: &mut Vec<String>) -> bool {
    let why = match backend.devices() {
        Err(error) => error.to_string(),
        Ok(devices) if devices.iter().all(|d| d.kind == DeviceKind::Unsupported) => {
            let unsupported = devices.iter().flat_map(|d| d.details.last().map(|(_, why)| (&d.name, why)));
            let each: Vec<String> = unsupported.map(|(name, why)| format!("{name} has {why}")).collect();
            format!("backend {}: no device that can be used: {}", backend.name(), each.join(", "))
        }
        Ok(devices) if devices.iter().all(|d| d.kind == DeviceKind::Software) => {
            format!("backend {}: only a software adapter, which is slow", backend.name())
        }
        Ok(_) => match graph.nodes.iter().find_map(|n| backend.supports(graph, n).err()) {
            Some(error) => error.to_string(),
            None => return true,
        },
    };
    reasons.push(why);
    false
}
