//! A model, compiled on a backend and ready to be fed: what `run`, `chat` and others begin with.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use moe_run_backends::{
    Backend, BackendError, CompileOptions, DeviceKind, Executable, WeightSource, Weights, registry,
    session::Session,
};
use moe_run_graph::Model;
use moe_run_text::{
    chat::ChatTemplate,
    tokenizer::{Tokenizer, TokenizerError},
};

use crate::{
    CliError,
    announce::{Chosen, not_run, on_opened},
    common::BackendArgs,
    output,
    progress::LoadBars,
    prompt,
};

/// A compiled model.
pub struct Engine {
    /// Dimensions, graph, file.
    pub model: Model,
    /// The model's, on the device: for as many plans as are wanted.
    pub weights: Arc<dyn Weights>,
    /// Holds the KV cache.
    pub session: Session,
    /// `None` where the file has none, or one of a kind that is not known.
    pub tokenizer: Option<Tokenizer>,
    /// From opening the file to the allocated KV cache.
    pub load_time: Duration,
}

impl Engine {
    /// Compiles a model and allocates its KV cache; says on standard error what runs where, and what it takes.
    ///
    /// Errors: the backend or device is absent or lacks something, or there is not enough memory; the file's tokenizer
    /// contradicts itself.
    pub fn load(model: Model, args: &BackendArgs, started: Instant) -> Result<Engine, CliError> {
        let options = args.compile_options(&model);
        Engine::load_with(model, args, options, started)
    }

    /// As [`Engine::load`], with compile options that began as those of `args`.
    ///
    /// Errors: as [`Engine::load`].
    pub fn load_with(
        model: Model,
        args: &BackendArgs,
        options: CompileOptions,
        started: Instant,
    ) -> Result<Engine, CliError> {
        let tokenizer = match prompt::tokenizer(model.metadata()) {
            Ok(tokenizer) => Some(tokenizer),
            Err(TokenizerError::Absent { .. }) => None,
            // Ids still run, and are what comes out; text is refused with this error.
            Err(error) if error.leaves_ids() => {
                output::note(&format!("note: no text, only token ids: {error}"));
                None
            }
            Err(error) => return Err(error.into()),
        };
        let trained_for = model.config.max_position_embeddings;
        if options.ctx_size > trained_for {
            output::warning(&format!(
                "a context of {} tokens is more than the {trained_for} that the model was trained for",
                options.ctx_size
            ));
        }
        let Compiled { weights, executable } = compile(&model, &args.backend, &options)?;
        let session = Session::new(executable)?;
        Ok(Engine { model, weights, session, tokenizer, load_time: started.elapsed() })
    }

    /// Another session from the weights that are loaded, with other taps or another context.
    ///
    /// Errors: the backend lacks something, or there is not enough memory.
    pub fn another_session(&self, options: &CompileOptions) -> Result<Session, CliError> {
        Ok(another_session(self.weights.as_ref(), &self.model, options)?)
    }

    /// The tokenizer, or the error that says how to do without.
    ///
    /// Errors: the file has none, or one of a kind that is not known.
    pub fn tokenizer(&self) -> Result<&Tokenizer, CliError> {
        let metadata = self.model.metadata();
        let why = || {
            let absent = TokenizerError::Absent { file: metadata.origin().to_owned() };
            Tokenizer::from_metadata(metadata).err().unwrap_or(absent)
        };
        Ok(self.tokenizer.as_ref().ok_or_else(why)?)
    }

    /// The chat template: the given one, or the file's.
    ///
    /// Errors: there is none, or it is not valid.
    pub fn chat_template(&self, given: Option<&ChatTemplate>) -> Result<ChatTemplate, CliError> {
        chat_template(&self.model, given)
    }
}

/// The chat template: the given one, or the file's.
///
/// Errors: there is none, or it is not valid.
pub fn chat_template(model: &Model, given: Option<&ChatTemplate>) -> Result<ChatTemplate, CliError> {
    let metadata = model.metadata();
    Ok(match given {
        Some(template) => template.clone().with_token_variables(metadata)?,
        None => ChatTemplate::from_metadata(metadata)?,
    })
}

/// The named backend; for "auto" the first that can run the model, and the choice to tell of. Nothing is opened.
///
/// Errors: there is no such backend, or none that can.
pub fn backend(model: &Model, name: &str) -> Result<(Box<dyn Backend>, Option<Chosen>), CliError> {
    if name != "auto" {
        return Ok((registry::by_name(name)?, None));
    }
    let mut not_taken = Vec::new();
    match candidates().find(|b| can_run(b.as_ref(), model, &mut not_taken)) {
        Some(backend) => {
            let chosen = Chosen { backend: backend.name(), not_taken };
            Ok((backend, Some(chosen)))
        }
        None => Err(none_can(not_taken)),
    }
}

/// A session of a model whose weights are loaded; says what runs where, if that has not been said.
///
/// Errors: the backend lacks something, or there is not enough memory.
pub fn another_session(
    weights: &dyn Weights,
    model: &Model,
    options: &CompileOptions,
) -> Result<Session, BackendError> {
    let bars = LoadBars::new();
    let opened = Some(on_opened(None));
    let options = CompileOptions { progress: bars.callback(), opened, ..options.clone() };
    Session::new(weights.compile(&model.graph, &options)?)
}

/// A model's weights on a device, and an executable made from them.
pub struct Compiled {
    /// For more executables.
    pub weights: Arc<dyn Weights>,
    /// The first.
    pub executable: Box<dyn Executable>,
}

/// Loads the model's weights to the named backend and compiles it; for "auto" on the first that can and has the memory. Says
/// what was opened, whether the model fits, and what runs where.
///
/// Errors: the backend or device is absent or lacks something, or there is not enough memory.
pub fn compile(model: &Model, name: &str, options: &CompileOptions) -> Result<Compiled, CliError> {
    not_run(model);
    let compile = |backend: &dyn Backend, chosen: Option<Chosen>| {
        let bars = LoadBars::new();
        let opened = Some(on_opened(chosen));
        let options = CompileOptions { progress: bars.callback(), opened, ..options.clone() };
        let source: Arc<dyn WeightSource> = Arc::clone(&model.file) as Arc<dyn WeightSource>;
        let weights = backend.load(&model.graph, source, &options)?;
        // What was opened has been said.
        let options = CompileOptions { opened: None, ..options };
        let executable = weights.compile(&model.graph, &options)?;
        Ok(Compiled { weights, executable })
    };
    if name != "auto" {
        return Ok(compile(registry::by_name(name)?.as_ref(), None)?);
    }
    let mut reasons = Vec::new();
    let mut memory = None;
    for backend in candidates() {
        if !can_run(backend.as_ref(), model, &mut reasons) {
            continue;
        }
        let chosen = Chosen { backend: backend.name(), not_taken: reasons.clone() };
        match compile(backend.as_ref(), Some(chosen)) {
            Ok(compiled) => return Ok(compiled),
            // A device that is there, and cannot be opened now.
            Err(error @ BackendError::NoDevice { .. }) => reasons.push(error.to_string()),
            Err(error @ BackendError::OutOfMemory { .. }) => {
                let (text, name) = (error.to_string(), format!("backend {}", backend.name()));
                reasons.push(if text.starts_with(&name) { text } else { format!("{name}: {text}") });
                memory = Some(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    // The last one's arithmetic says what would fit.
    Err(memory.map_or_else(|| none_can(reasons), CliError::from))
}

/// What "auto" looks at, fastest first. The reference is never chosen: it defines the operations and is slow.
fn candidates() -> impl Iterator<Item = Box<dyn Backend>> {
    registry::all().into_iter().filter(|b| b.name() != "reference")
}

/// Whether a backend has a device that it takes by itself, and every operation of the model; if not, why.
fn can_run(backend: &dyn Backend, model: &Model, reasons: &mut Vec<String>) -> bool {
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
        Ok(_) => match model.graph.nodes.iter().find_map(|n| backend.supports(&model.graph, n).err()) {
            Some(error) => error.to_string(),
            None => return true,
        },
    };
    reasons.push(why);
    false
}

fn none_can(mut reasons: Vec<String>) -> CliError {
    reasons.push("--backend reference runs any model, slowly".to_owned());
    CliError::unsupported(format!("no backend can run this model here: {}", reasons.join("; ")))
}

/// A size for people: "9.2 MiB".
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
