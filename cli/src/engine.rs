//! A model, compiled on a backend and ready to be fed: what `run`, `chat` and others begin with.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use moe_run_backends::{
    BackendError, CompileOptions, WeightSource, Weights,
    auto::{self, Chosen, Loaded},
    session::Session,
};
use moe_run_graph::Model;
use moe_run_text::{
    chat::ChatTemplate,
    tokenizer::{Tokenizer, TokenizerError},
};

use crate::{
    CliError,
    announce::{not_run, on_opened},
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
        let options = args.compile_options(&model)?;
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
        let Loaded { weights, executable } = load(&model, &args.backend, &options)?;
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

/// Loads the model's weights to the named backend and compiles it; for "auto" on the first that can and has the memory. Says
/// what was opened, whether the model fits, and what runs where.
///
/// Errors: the backend or device is absent or lacks something, or there is not enough memory.
pub fn load(model: &Model, name: &str, options: &CompileOptions) -> Result<Loaded, CliError> {
    not_run(model);
    let bars = LoadBars::new();
    let options = |chosen: Option<&Chosen>| {
        let opened = Some(on_opened(chosen.cloned()));
        CompileOptions { progress: bars.callback(), opened, ..options.clone() }
    };
    let source: Arc<dyn WeightSource> = Arc::clone(&model.file) as Arc<dyn WeightSource>;
    Ok(auto::load(&model.graph, &source, name, options)?)
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
