//! Saved tensors around a divergence: both sides run once more, with the taps of the layer in question and the one before,
//! and nothing else is written. Looking changes nothing, so these are the values that were compared.

use super::{Against, Comparison, ParityError, Report};
use crate::taps::save::{Capture, ModelIdentity, SaveOptions, SaveSink};
use moe_run_graph::ir::{Graph, Stage};
use moe_run_graph::passes::TapSelection;
use moe_run_runtime::executable::{Executable, Observer};
use moe_run_runtime::session::LogitsRows;
use std::path::PathBuf;

/// Where the two sides go: `backend` and `against` below a directory.
#[derive(Debug, Clone)]
pub struct SaveAround<'a> {
    /// The directory, the files' format, and whether earlier ones are replaced.
    pub options: SaveOptions,
    /// Which model.
    pub model: ModelIdentity,
    /// `general.architecture`.
    pub architecture: &'a str,
}

/// The taps around what a report found first: its layer's and those of the layer before it; at the end of the model the
/// last layer's and the model's own, at its beginning the embedding and layer 0.
fn around(graph: &Graph, report: &Report) -> Option<TapSelection> {
    let first = report.first.as_ref()?;
    let last = graph.num_layers.saturating_sub(1);
    let begins = first.stage == Some(Stage::Embedding);
    let layers = match first.layer {
        Some(layer) => layer.saturating_sub(1)..=layer,
        None if begins => 0..=0,
        None => last..=last,
    };
    let wanted = |stage: Stage, layer: Option<usize>| match layer {
        Some(layer) => layers.contains(&layer),
        None if stage == Stage::Embedding => begins || layers.contains(&0),
        None => first.layer.is_none() && !begins,
    };
    let taps = graph.taps().map(|(node, stage)| (stage, node.layer.map(|l| l.index())));
    Some(taps.filter(|(stage, layer)| wanted(*stage, *layer)).collect())
}

impl Comparison<'_> {
    /// Saves the stages around what `report` found first, for each side that runs here; returns the directories, none where
    /// nothing was found. `watch` sees every launch, and may stop it.
    ///
    /// # Errors
    /// [`ParityError`]; a side that was not finished leaves nothing behind.
    pub fn save_around(
        &mut self,
        report: &Report,
        save: &SaveAround<'_>,
        watch: &mut dyn Observer,
    ) -> Result<Vec<PathBuf>, ParityError> {
        let Comparison { run, subject } = self;
        let Some(taps) = around(run.graph, report) else { return Ok(Vec::new()) };
        let mut side = |name: &str, executable: Box<dyn Executable>, hook: Option<&mut dyn Observer>| {
            let capture = Capture {
                graph: run.graph,
                taps: &taps,
                tokens: &run.options.tokens,
                logits_rows: LogitsRows::All,
                model: save.model.clone(),
                architecture: save.architecture,
                executable: executable.info(),
            };
            let place = SaveOptions { dir: save.options.dir.join(name), ..save.options.clone() };
            let mut sink = SaveSink::create(place, &capture)?;
            let mut both = crate::taps::Fanout { sinks: vec![&mut *watch, &mut sink] };
            run.options.drive(executable, &mut both, hook)?;
            Ok::<PathBuf, ParityError>(sink.finish()?)
        };
        let executable = run.subject(taps.clone())?;
        let other = match run.against {
            Against::Saved(..) => None,
            Against::Backend(backend, device) => {
                Some(run.other(backend, device, executable.info(), taps.clone())?)
            }
        };
        let hook = subject.hook.as_deref_mut().map(|h| h as &mut dyn Observer);
        let mut saved = vec![side("backend", executable, hook)?];
        if let Some(other) = other {
            saved.push(side("against", other, None)?);
        }
        Ok(saved)
    }
}
