//! `--save-tensor …`: which stages of a prompt's evaluation become files, where, and how.

use std::{ops::Range, path::PathBuf};

use clap::ValueEnum;
use moe_run_backends::{CompileOptions, session::LogitsRows};
use moe_run_graph::{Model, ids::TokenId, passes::TapSelection, shown::shown_path};
use moe_run_inspect::taps::{
    save::{Capture, ModelIdentity, SaveOptions, SaveSink, check_dir},
    select::{StageList, parse_layers},
    tensor_file::FileFormat,
};

use crate::{CliError, common::ModelArgs, engine::Engine, output, output_file};

/// Tokens that are evaluated together where every row of logits is kept; every backend's default, so that looking
/// changes nothing.
const MICRO_BATCH_TOKENS: usize = 512;

/// What is saved.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Saved tensors")]
pub struct SaveArgs {
    /// Save these stages of the prompt's evaluation: names separated by commas, or all
    #[arg(long, value_name = "STAGES")]
    pub save_tensor: Option<String>,

    /// Directory for them [default: the model file's name without its ending, then -trace]
    #[arg(long, value_name = "DIR", requires = "save_tensor")]
    pub save_tensor_dir: Option<PathBuf>,

    /// Layers whose stages are saved, END not included; stages of the whole model always are
    #[arg(long, value_name = "START..END", default_value = "0..1", requires = "save_tensor")]
    pub save_tensor_layers: String,

    /// Format of the files
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "aprt", requires = "save_tensor")]
    pub save_tensor_format: SaveFormat,

    /// Replace what an earlier run saved in the same directory
    #[arg(long, requires = "save_tensor")]
    pub save_tensor_overwrite: bool,
}

/// `--save-tensor-format`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SaveFormat {
    /// A file a stage, as `apr trace --save-tensor` writes it
    #[default]
    Aprt,
    /// A file a stage, for numpy
    Npy,
    /// One file for all stages
    Safetensors,
}

/// What is saved, checked as far as that goes without the model.
#[derive(Clone, Debug)]
pub struct SaveRequest {
    stages: StageList,
    layers: Range<usize>,
    options: SaveOptions,
}

impl SaveArgs {
    /// Checks the arguments; `None` where nothing is to be saved.
    ///
    /// Errors: stages or layers that cannot be, a directory that is a file or holds saved tensors.
    pub fn check(&self, model: &ModelArgs) -> Result<Option<SaveRequest>, CliError> {
        let Some(list) = &self.save_tensor else { return Ok(None) };
        let stages = StageList::parse(list)?;
        let layers = parse_layers(&self.save_tensor_layers)?;
        let stem = model.model.as_deref().and_then(|m| m.file_stem()).map(|s| s.to_string_lossy());
        let default_dir = || PathBuf::from(format!("{}-trace", stem.as_deref().unwrap_or("demo")));
        let dir = self.save_tensor_dir.clone().unwrap_or_else(default_dir);
        output_file::check_name("--save-tensor-dir", &dir)?;
        check_dir(&dir, self.save_tensor_overwrite)?;
        let format = match self.save_tensor_format {
            SaveFormat::Aprt => FileFormat::Aprt,
            SaveFormat::Npy => FileFormat::Npy,
            SaveFormat::Safetensors => FileFormat::Safetensors,
        };
        let options = SaveOptions { dir, format, overwrite: self.save_tensor_overwrite };
        Ok(Some(SaveRequest { stages, layers, options }))
    }
}

impl SaveRequest {
    /// The taps that are saved.
    ///
    /// Errors: stages or layers that the model lacks.
    pub fn taps(&self, model: &Model) -> Result<TapSelection, CliError> {
        Ok(self.stages.select(&model.graph, &self.layers)?)
    }

    /// The rows of logits that the prompt's evaluation must ask for.
    pub fn logits_rows(&self) -> LogitsRows {
        if self.stages.needs_all_logits() { LogitsRows::All } else { LogitsRows::Last }
    }

    /// Adds the taps to what the model is compiled with. Everything that the command reads is known by now.
    ///
    /// Errors: as [`SaveRequest::taps`]; the directory holds a file that the command reads and would write.
    pub fn prepare(&self, model: &Model, options: &mut CompileOptions) -> Result<(), CliError> {
        check_dir(&self.options.dir, self.options.overwrite)?;
        options.taps = union(std::mem::take(&mut options.taps), self.taps(model)?);
        if self.logits_rows() == LogitsRows::All {
            all_logits(options);
        }
        Ok(())
    }

    /// The sink for an evaluation of `tokens` from position 0 on.
    ///
    /// Errors: the files cannot be created.
    pub fn sink(&self, engine: &Engine, tokens: &[TokenId]) -> Result<SaveSink, CliError> {
        let capture = Capture {
            graph: &engine.model.graph,
            taps: &self.taps(&engine.model)?,
            tokens,
            logits_rows: self.logits_rows(),
            model: ModelIdentity::of(&engine.model.file),
            architecture: &engine.model.config.architecture,
            executable: engine.session.info(),
        };
        Ok(SaveSink::create(self.options.clone(), &capture)?)
    }
}

/// Compiles for every row's logits.
pub fn all_logits(options: &mut CompileOptions) {
    let micro_batch = options.micro_batch.unwrap_or(MICRO_BATCH_TOKENS).min(options.ctx_size).max(1);
    options.micro_batch = Some(micro_batch);
    options.max_logits_rows = micro_batch;
}

/// Both selections.
pub fn union(a: TapSelection, b: TapSelection) -> TapSelection {
    match (a, b) {
        (TapSelection::None, other) | (other, TapSelection::None) => other,
        (TapSelection::All, _) | (_, TapSelection::All) => TapSelection::All,
        (TapSelection::Some(a), TapSelection::Some(b)) => a.into_iter().chain(b).collect(),
    }
}

/// Completes the files and says where they are.
///
/// Errors: they cannot be written.
pub fn finish(sink: SaveSink) -> Result<(), CliError> {
    let dir = sink.finish()?;
    output::note(&format!("saved tensors: {}", shown_path(&dir)));
    Ok(())
}
