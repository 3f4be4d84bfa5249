//! Saved tensors around a divergence: both sides run once more, with the taps of the layer in question and the one before,
//! and nothing else is written. Looking changes nothing, so these are the values that were compared.

use super::{Against, Options, ParityError, Report, Subject, agree, other_compiled};
use crate::taps::save::{Capture, ModelIdentity, SaveOptions, SaveSink};
use moe_run_graph::ir::{Graph, Stage};
use moe_run_graph::passes::TapSelection;
use moe_run_runtime::executable::{Executable, Observer, WeightSource};
use moe_run_runtime::session::LogitsRows;
use std::path::PathBuf;
use std::sync::Arc;

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

/// Saves the stages around what `report` found first, for each side that runs here; returns the directories, none where
/// nothing was found. `watch` sees every launch, and may stop it.
///
/// # Errors
/// [`ParityError`]; a side that was not finished leaves nothing behind.
pub fn save_around(
    graph: &Graph,
    weights: &Arc<dyn WeightSource>,
    subject: Subject<'_>,
    against: Against<'_>,
    options: &Options,
    report: &Report,
    save: &SaveAround<'_>,
    watch: &mut dyn Observer,
) -> Result<Vec<PathBuf>, ParityError> {
    let Some(taps) = around(graph, report) else { return Ok(Vec::new()) };
    let q8_super_block = agree::q8_super_block(graph, subject.backend, against, options)?;
    let compile = options.compiled(taps.clone(), q8_super_block);
    let mut side = |name: &str, executable: Box<dyn Executable>, hook: Option<&mut dyn Observer>| {
        let capture = Capture {
            graph,
            taps: &taps,
            tokens: &options.tokens,
            logits_rows: LogitsRows::All,
            model: save.model.clone(),
            architecture: save.architecture,
            executable: executable.info(),
        };
        let place = SaveOptions { dir: save.options.dir.join(name), ..save.options.clone() };
        let mut sink = SaveSink::create(place, &capture)?;
        let mut both = crate::taps::Fanout { sinks: vec![&mut *watch, &mut sink] };
        options.drive(executable, &mut both, hook)?;
        Ok::<PathBuf, ParityError>(sink.finish()?)
    };
    let executable = subject.backend.compile(subject.graph, Arc::clone(&subject.weights), &compile)?;
    let other = match against {
        Against::Saved(..) => None,
        Against::Backend(backend, device) => {
            let compile = other_compiled(&compile, executable.info(), device);
            Some(backend.compile(graph, Arc::clone(weights), &compile)?)
        }
    };
    let mut saved = vec![side("backend", executable, subject.hook)?];
    if let Some(other) = other {
        saved.push(side("against", other, None)?);
    }
    Ok(saved)
}
