//! `moe-run trace`: the production executable, watched: statistics of every layer, routing, saved tensors.

use std::{collections::BTreeSet, num::NonZeroUsize, time::Instant};

use clap::ValueEnum;
use moe_run_backends::{
    BackendError, Observer, ValueAccess,
    session::{LogitsRows, Session},
};
use moe_run_graph::{
    Model,
    config::FfnConfig,
    ir::Stage,
    passes::{Launch, Plan, TapSelection},
};
use moe_run_inspect::taps::{
    Fanout,
    routing::RoutingSink,
    save::SaveSink,
    select::StageList,
    stats::{Positions, StatsSink},
};

use crate::{
    CliError, ExitCode,
    common::{BackendArgs, ModelArgs},
    engine::Engine,
    interrupt::Generation,
    output,
    perplexity::DEFAULT_CHUNK_TOKENS,
    prompt::PromptArgs,
    routing::{RoutingArgs, RoutingFiles, Tokens, TraceInput},
    save_args::{self, SaveArgs, SaveRequest},
    trace_report,
};

/// The stages of a layer that a trace shows unless asked for more, by the names of its fields; `qkv` is the last of the
/// two stages that the model has, and a dense layer's `ffn_out` is its stage of that name.
pub const LAYER_FIELDS: [(&str, &[Stage]); 7] = [
    ("attn_norm", &[Stage::AttnNorm]),
    ("qkv", &[Stage::QkvBias, Stage::QkvMatmul]),
    ("attn_out", &[Stage::AttnOut]),
    ("ffn_norm", &[Stage::FfnNorm]),
    ("moe_router", &[Stage::MoeRouter]),
    ("ffn_out", &[Stage::MoeFfnOut, Stage::FfnOut]),
    ("output", &[Stage::PostFfnResidual]),
];

/// Arguments of `trace`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Which model
    #[command(flatten)]
    pub model: ModelArgs,

    /// What it is asked
    #[command(flatten)]
    pub prompt: PromptArgs,

    /// What runs it
    #[command(flatten)]
    pub backend: BackendArgs,

    /// Take statistics of these stages too: names separated by commas, or all
    #[arg(long, value_name = "STAGES", help_heading = "Trace")]
    pub stages: Option<String>,

    /// Of which positions statistics are taken; of a text in chunks, all together or the last of each
    #[arg(long, value_enum, default_value = "last", help_heading = "Trace")]
    pub positions: PositionsArg,

    /// Where every token was sent
    #[command(flatten)]
    pub routing: RoutingArgs,

    /// What is saved
    #[command(flatten)]
    pub save: SaveArgs,

    /// Print one JSON object instead of text
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// `--positions`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum PositionsArg {
    /// The prompt's last
    Last,
    /// All of them together
    All,
}

/// Stops a step between two launches where Ctrl-C asks for it.
pub struct StopOnInterrupt<'a>(pub &'a Generation);

/// What stopped the step.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Stopped;

impl Observer for StopOnInterrupt<'_> {
    fn before_launch(
        &mut self,
        _plan: &Plan,
        _launch: &Launch,
        _values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        if self.0.is_interrupted() { Err(BackendError::Observer(Box::new(Stopped))) } else { Ok(()) }
    }
}

/// What a traced pass gave.
pub struct Traced {
    /// Statistics.
    pub stats: StatsSink,
    /// Experts and weights.
    pub routing: RoutingSink,
    /// The last position's.
    pub logits: Vec<f32>,
    /// The first stage of all, in the order of execution, whose values are not finite: found by a second pass with every
    /// tap of its layer where the first pass had only some.
    pub first_non_finite: Option<String>,
}

/// Traces a prompt.
///
/// Errors: arguments, model, backend, files, or a failure while running. Logits that are not numbers are shown.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    args.backend.check()?;
    let save = args.save.check(&args.model)?;
    args.routing.check(args.json)?;
    let stages = args.stages.as_deref().map(StageList::parse).transpose()?;
    let input = TraceInput::resolve(args.prompt, args.routing.is_given())?;
    let started = Instant::now();
    let model = args.model.open()?;
    input.check_kind(model.metadata())?;
    let mut options = args.backend.compile_options(&model)?;
    if input.is_text() {
        options.ctx_size = args.backend.ctx_size.map_or(DEFAULT_CHUNK_TOKENS, NonZeroUsize::get);
    }
    options.taps = default_taps(&model);
    if let Some(stages) = &stages {
        let layers = 0..model.graph.num_layers;
        options.taps = save_args::union(options.taps, stages.select(&model.graph, &layers)?);
    }
    if let Some(save) = &save {
        save.prepare(&model, &mut options)?;
    }
    let mut files = RoutingFiles::create(&args.routing)?;
    let mut engine = Engine::load_with(model, &args.backend, options.clone(), started)?;
    let tokens = input.encode(&engine, options.ctx_size)?;
    if save.is_some() && tokens.chunks.len() > 1 {
        return Err(CliError::bad_input(format!(
            "--save-tensor: saves one pass, and with --routing the text of {} tokens runs in {} chunks; give a part of it, or \
             a --ctx-size that holds all of it",
            tokens.len(),
            tokens.chunks.len()
        )));
    }
    let sink = save.as_ref().map(|s| s.sink(&engine, &tokens.all())).transpose()?;
    let rows = save.as_ref().map_or(LogitsRows::Last, SaveRequest::logits_rows);
    files.head(&engine, &tokens)?;
    let mut traced = pass(&mut engine.session, &tokens, rows, args.positions, sink, Some(&mut files))?;
    if let Some(first) = traced.stats.first_non_finite() {
        let layer = first.layer;
        let before = layer.map(|l| l.saturating_sub(1));
        let near: BTreeSet<_> = engine
            .model
            .graph
            .taps()
            .map(|(node, stage)| (stage, node.layer.map(|l| l.index())))
            .filter(|(_, l)| *l == layer || *l == before || l.is_none())
            .collect();
        options.taps = TapSelection::Some(near);
        let mut session = engine.another_session(&options)?;
        let closer = pass(&mut session, &tokens, LogitsRows::Last, PositionsArg::All, None, None)?;
        traced.first_non_finite = closer.stats.first_non_finite().map(|e| e.stage.path(e.layer));
    }
    let experts = |layer: usize| match &engine.model.config.layers[layer].ffn {
        FfnConfig::Moe(moe) => moe.num_experts,
        FfnConfig::Dense { .. } | FfnConfig::Absent => 0,
    };
    let usage = traced.routing.summary(experts);
    let stdout_is_taken = files.finish(&usage)?;
    let stages = options_stages(stages);
    let report =
        trace_report::Report::new(&engine, &tokens.all(), &traced, tokens.last_position(), &usage, &stages);
    if stdout_is_taken {
        output::say(&report.text());
    } else if args.json {
        output::json(&report.json)?;
    } else {
        output::text(&report.text())?;
    }
    Ok(ExitCode::Ok)
}

fn options_stages(stages: Option<StageList>) -> Vec<Stage> {
    match stages {
        None => Vec::new(),
        Some(StageList::All) => Stage::ALL.to_vec(),
        Some(StageList::Some(stages)) => stages.into_iter().collect(),
    }
}

/// The taps of the fields, with the ids that go with the router's weights.
fn default_taps(model: &Model) -> TapSelection {
    let wanted = |stage: Stage| {
        matches!(stage, Stage::Embedding | Stage::FinalNorm | Stage::LmHead | Stage::MoeTopkIds)
            || LAYER_FIELDS.iter().any(|(_, stages)| stages.contains(&stage))
    };
    let taps = model.graph.taps().filter(|(_, s)| wanted(*s));
    let dense = |layer: Option<usize>| {
        layer.is_some_and(|l| matches!(model.config.layers[l].ffn, FfnConfig::Dense { .. }))
    };
    taps.map(|(node, stage)| (stage, node.layer.map(|l| l.index())))
        .filter(|(stage, layer)| *stage != Stage::FfnOut || dense(*layer))
        .collect()
}

fn pass(
    session: &mut Session,
    tokens: &Tokens,
    rows: LogitsRows,
    positions: PositionsArg,
    mut sink: Option<SaveSink>,
    mut files: Option<&mut RoutingFiles>,
) -> Result<Traced, CliError> {
    let generation = Generation::begin();
    let (mut stats, mut routing, mut stop) =
        (StatsSink::new(Positions::All), RoutingSink::default(), StopOnInterrupt(&generation));
    for (index, chunk) in tokens.chunks.iter().enumerate() {
        if positions == PositionsArg::Last {
            stats.select(Positions::Only(chunk.len() as u32 - 1));
        }
        routing.next_chunk();
        let mut fanout = Fanout { sinks: vec![&mut stop, &mut stats, &mut routing] };
        if let Some(sink) = &mut sink {
            fanout.sinks.push(sink);
        }
        session.truncate(0)?;
        match session.feed(chunk, rows, Some(&mut fanout), |_, _| Ok(())) {
            Err(BackendError::Observer(cause)) if cause.is::<Stopped>() => return Err(CliError::Interrupted),
            fed => fed?,
        }
        if let Some(files) = files.as_mut() {
            files.chunk(&routing, index, chunk)?;
        }
    }
    if let Some(sink) = sink {
        save_args::finish(sink)?;
    }
    let mut logits = Vec::new();
    session.logits(&mut logits)?;
    Ok(Traced { stats, routing, logits, first_non_finite: None })
}
