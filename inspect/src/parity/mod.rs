//! Parity: which is the first operation that is wrong, and is it wrong by itself or through its inputs?
//!
//! Input: a model, a backend, and the other side: another backend, or stages that were saved. Both run the production
//! executable with every tap. The free run (`free`) leaves both sides to themselves; the forced run (`forced`) gives
//! every launch of the first side the other's inputs and so tells an op's own error from what it inherited. Output: a
//! [`Report`]. Limits come from the table in [`crate::tolerance`]. Nothing is kept but the stages in flight.

mod agree;
mod around;
mod forced;
mod free;
mod local;
mod not_finite;
mod report;
mod run;
mod source;
mod values;

pub use around::SaveAround;
pub use report::{
    First, LogitsCheck, NotFinite, OpCheck, Report, RoutingFlip, SCHEMA_VERSION, SideInfo, StageCheck,
    Verdict,
};

use crate::taps::save::{ModelIdentity, SaveError};
use crate::taps::tensor_file::TensorFileError;
use crate::taps::tensor_set::TensorSet;
use crate::tolerance::{self, Relation};
use forced::Forced;
use free::Free;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{Graph, Node, Op, Stage};
use moe_run_graph::passes::TapSelection;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{Activations, Backend, CompileOptions, Observer, WeightSource};
use run::{Run, other_compiled};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use values::ValueMap;

/// Tokens of a step unless asked otherwise: every backend's default.
const MICRO_BATCH_TOKENS: usize = 512;

/// A comparison that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParityError {
    /// A side failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Saved stages cannot be read.
    #[error(transparent)]
    File(#[from] TensorFileError),
    /// A saved stage of another shape.
    #[error("{}: stage {stage} has shape {found:?}, wanted {wanted}; was it saved for these tokens?", path.display())]
    SavedShape {
        /// The stage.
        stage: String,
        /// Its file.
        path: PathBuf,
        /// Its shape.
        found: Vec<usize>,
        /// What these tokens need.
        wanted: String,
    },
    /// The two sides have different models.
    #[error(
        "stage {stage}: the other side has shape {found:?}, this one {wanted:?}; are both the same model?"
    )]
    Sizes {
        /// The stage.
        stage: String,
        /// There.
        found: Vec<usize>,
        /// Here.
        wanted: Vec<usize>,
    },
    /// Nothing to compare.
    #[error("{}: none of its tensors is a stage of this model; wanted names such as layer-0/attn_norm", path.display())]
    NoStages {
        /// The saved stages.
        path: PathBuf,
    },
    /// Saved stages whose 8-bit block the judged backend does not have.
    #[error(
        "{}: saved with 8-bit activations in blocks of {saved} for super-block formats; backend {backend} takes {found} \
         only. Try --backend {able}, or stages saved with --activations f32",
        path.display()
    )]
    SavedBlock {
        /// The saved stages.
        path: PathBuf,
        /// Elements of their block.
        saved: usize,
        /// The judged backend.
        backend: &'static str,
        /// Elements of its blocks.
        found: String,
        /// Backends that have the block.
        able: String,
    },
    /// Saved stages of other tokens.
    #[error(
        "{}: saved for other tokens: {detail}. Without --tokens, -p and -f the recorded tokens are taken",
        path.display()
    )]
    SavedTokens {
        /// The saved stages.
        path: PathBuf,
        /// The first difference.
        detail: String,
    },
    /// Saved stages that were rounded otherwise than the run rounds.
    #[error(
        "{}: saved with {option} {saved}; this run has {found}, and an operation would be blamed for that. Leave {option} \
         out, or save stages with {option} {found} (stages of f32 can be compared with any run)",
        path.display()
    )]
    SavedSetting {
        /// The saved stages.
        path: PathBuf,
        /// The setting's option.
        option: &'static str,
        /// Their setting.
        saved: String,
        /// The run's.
        found: String,
    },
    /// Stages cannot be saved.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// No tokens.
    #[error("no tokens to compare; give a prompt or token ids")]
    NoTokens,
}

/// Through an observer's error and back.
fn carry(error: ParityError) -> BackendError {
    match error {
        ParityError::Backend(error) => error,
        error => BackendError::Observer(Box::new(error)),
    }
}

fn uncarry(error: BackendError) -> ParityError {
    match error {
        BackendError::Observer(cause) => match cause.downcast::<ParityError>() {
            Ok(error) => *error,
            Err(cause) => ParityError::Backend(BackendError::Observer(cause)),
        },
        error => ParityError::Backend(error),
    }
}

/// The side that is judged.
pub struct Subject<'a> {
    /// What runs it.
    pub backend: &'a dyn Backend,
    /// Its graph: the model's, or one that was altered on purpose.
    pub graph: &'a Graph,
    /// Its weights: the model's, or altered ones.
    pub weights: Arc<dyn WeightSource>,
    /// Sees every launch after its inputs were replaced and before its outputs are compared. Fault injection.
    pub hook: Option<&'a mut dyn Observer>,
}

/// The side that it is judged by.
#[derive(Clone, Copy)]
pub enum Against<'a> {
    /// A backend, on the device of this name or number.
    Backend(&'a dyn Backend, Option<&'a str>),
    /// Saved stages, and the backends of this build: one of them may have saved them.
    Saved(&'a TensorSet, &'a [Box<dyn Backend>]),
}

/// When the forced run is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForcedRun {
    /// After a divergence or a routing flip in the free run.
    OnDivergence,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What is compared, and how.
#[derive(Clone)]
pub struct Options {
    /// The tokens.
    pub tokens: Vec<TokenId>,
    /// So many of them, at the end, are evaluated one by one.
    pub decode_tokens: usize,
    /// Whether the forced run is made.
    pub forced: ForcedRun,
    /// Activations, KV type, device, threads and micro-batch of the subject; the rest is set here. The other backend
    /// gets the same activations and KV type.
    pub compile: CompileOptions,
    /// How the arithmetic of saved stages relates to the subject's.
    pub saved_relation: Relation,
    /// The judged model: the report names the one that stages were saved from where that is another. `None` asks nothing.
    pub model: Option<ModelIdentity>,
}

/// Two sides that can be compared; their weights are loaded once, whatever is run.
pub struct Comparison<'a> {
    run: Run<'a>,
    subject: Subject<'a>,
}

/// Compares. `graph` and `weights` are the model's own.
///
/// # Errors
/// As [`Comparison::new`] and [`Comparison::report`].
pub fn compare<'a>(
    graph: &'a Graph,
    weights: &'a Arc<dyn WeightSource>,
    subject: Subject<'a>,
    against: Against<'a>,
    options: &'a Options,
) -> Result<Report, ParityError> {
    Comparison::new(graph, weights, subject, against, options)?.report()
}

impl<'a> Comparison<'a> {
    /// Checks that the sides can be compared, and loads the subject's weights. `graph` and `weights` are the model's own.
    ///
    /// # Errors
    /// [`ParityError`] where a comparison cannot be made.
    pub fn new(
        graph: &'a Graph,
        weights: &'a Arc<dyn WeightSource>,
        subject: Subject<'a>,
        against: Against<'a>,
        options: &'a Options,
    ) -> Result<Comparison<'a>, ParityError> {
        if options.tokens.is_empty() {
            return Err(ParityError::NoTokens);
        }
        if let Against::Saved(set, _) = against {
            agree::check_tokens(set, &options.tokens)?;
            if !graph.taps().any(|(n, s)| set.tensors.contains_key(&s.path(n.layer.map(|l| l.index())))) {
                return Err(ParityError::NoStages { path: set.path.clone() });
            }
        }
        let q8_super_block = agree::q8_super_block(graph, subject.backend, against, options)?;
        let compile = options.compiled(TapSelection::All, q8_super_block);
        let run = Run::new(graph, weights, &subject, against, options, compile)?;
        Ok(Comparison { run, subject })
    }

    /// Runs both sides and compares them.
    ///
    /// # Errors
    /// [`ParityError`] where a comparison cannot be made; a divergence is no error but a verdict.
    pub fn report(&mut self) -> Result<Report, ParityError> {
        let Comparison { run, subject } = self;
        let Run { graph, against, options, .. } = *run;
        let weights = run.source;
        let tokens = options.tokens.len();
        let executable = run.subject(TapSelection::All)?;
        let info = executable.info().clone();
        if let Against::Saved(set, _) = against {
            agree::check_saved(set, &info)?;
        }
        let relation = match against {
            Against::Backend(..) => Relation::Same,
            Against::Saved(..) => options.saved_relation,
        };
        let other_has_bits = match against {
            Against::Backend(other, _) => other.has_reference_bits(),
            Against::Saved(set, backends) => agree::has_bits_of(graph, set, backends, &info),
        };
        let same_bits = other_has_bits
            && subject.backend.has_reference_bits()
            && info.activations == Activations::Q8
            && graph.weights.iter().any(|w| w.format.is_quantized());
        let free_tolerance = if same_bits { tolerance::SAME_BITS } else { tolerance::free(&info, relation) };

        let mut other_info = None;
        let hook = subject.hook.as_deref_mut().map(|h| h as &mut dyn Observer);
        let free = run.both(executable, hook, &mut other_info, |source| Free::new(source, free_tolerance))?;
        let wanted = match options.forced {
            ForcedRun::Always => true,
            ForcedRun::Never => false,
            ForcedRun::OnDivergence => free.first_beyond.is_some() || !free.flips.is_empty(),
        };
        let mut checks = Vec::new();
        let mut first_forced = None;
        if wanted {
            let executable = run.subject(TapSelection::All)?;
            let hook = subject.hook.as_deref_mut().map(|h| h as &mut dyn Observer);
            let forced = run.both(executable, hook, &mut other_info, |source| Forced {
                source,
                map: ValueMap::new(graph),
                backend: subject.backend,
                info: info.clone(),
                arithmetic: other_compiled(&run.compile, &info, None),
                relation,
                weights: weights.as_ref(),
                graph,
                norms: local::RowNorms::default(),
                checks: Vec::new(),
                index: HashMap::new(),
                first_beyond: None,
                unforced: false,
                router_ids: None,
            })?;
            first_forced = forced.first_beyond;
            checks = forced.checks;
        }

        let first = match (first_forced, free.first_beyond) {
            (Some(first), _) => Some(first_of_forced(&first)),
            (None, Some((stage, layer, position))) => {
                Some(first_of_free(graph, &free, stage, layer, position, free_tolerance))
            }
            (None, None) => None,
        };
        let unjudged = if wanted { unjudged_ops(graph, &checks) } else { 0 };
        let conclusion = conclusion(&first, &free, wanted, unjudged, free_tolerance);
        let not_finite = free.first_not_finite.map(|beginning| {
            let is_compared = |stage, layer| free.stages.iter().any(|c| (c.stage, c.layer) == (stage, layer));
            beginning.describe(subject.graph, subject.weights.as_ref(), is_compared)
        });
        let (unknown_tensors, saved_from) = match against {
            Against::Backend(..) => (Vec::new(), None),
            Against::Saved(set, _) => (
                agree::unknown_tensors(graph, set),
                set.model().filter(|saved| options.model.as_ref().is_some_and(|m| !m.is_same_as(saved))),
            ),
        };
        let against = match against {
            Against::Backend(backend, _) => {
                SideInfo { name: backend.name().to_owned(), executable: other_info }
            }
            Against::Saved(set, _) => SideInfo { name: set.path.display().to_string(), executable: None },
        };
        Ok(Report {
            schema_version: SCHEMA_VERSION,
            verdict: if first.is_some() { Verdict::Diverged } else { Verdict::Pass },
            first,
            conclusion,
            backend: SideInfo { name: info.backend.to_owned(), executable: Some(info) },
            against,
            relation,
            free_tolerance,
            tokens,
            decode_tokens: options.decode_tokens.min(tokens),
            logits: free.logits(),
            missing_stages: free.missing.into_iter().collect(),
            unknown_tensors,
            saved_from,
            not_finite,
            stages: free.stages,
            routing_flips: free.flips,
            ops: checks,
        })
    }
}

fn first_of_forced(check: &OpCheck) -> First {
    First {
        op: check.op.clone(),
        layer: check.layer,
        stage: check.stage,
        local_error: check.local_error,
        tolerance: check.tolerance,
        tolerance_cause: check.tolerance_cause,
        tensor: check.tensor.clone(),
        format: check.format,
        launch: Some(check.launch),
        kernel: check.kernel.clone(),
        shape: Some(check.shape.clone()),
        position: check.position,
        found_by: "forced",
    }
}

fn first_of_free(
    graph: &Graph,
    free: &Free<'_>,
    stage: Stage,
    layer: Option<usize>,
    position: u32,
    tolerance: tolerance::Tolerance,
) -> First {
    let tap = graph.taps().find(|(n, s)| *s == stage && n.layer.map(|l| l.index()) == layer);
    let mut makers: Vec<_> = tap
        .iter()
        .flat_map(|(n, _)| &n.inputs)
        .filter_map(|v| graph.value(*v).producer.and_then(|p| graph.node(p)))
        .collect();
    // States have no taps: what writes one makes it.
    makers.extend(graph.nodes.iter().filter(|n| {
        let mut written = n.op.written_states().into_iter().map(|s| graph.state(s));
        written.any(|s| s.stage() == Some(stage) && Some(s.layer.index()) == layer)
    }));
    let weight = makers.first().and_then(|n| n.op.weights().first().copied()).map(|w| graph.weight(w));
    let check = free.stages.iter().find(|c| c.stage == stage && c.layer == layer);
    First {
        op: makers.iter().map(|n| n.path()).collect::<Vec<_>>().join(", "),
        layer,
        stage: Some(stage),
        local_error: check.map_or(f64::NAN, |c| c.relative_l2),
        tolerance: tolerance.value,
        tolerance_cause: tolerance.cause,
        tensor: weight.map(|w| w.name.clone()),
        format: weight.map(|w| w.format.name()),
        launch: None,
        kernel: None,
        shape: None,
        position,
        found_by: "free",
    }
}

/// Production ops that the forced run could not judge: the other side lacks an input or the output.
fn unjudged_ops(graph: &Graph, checks: &[OpCheck]) -> usize {
    let feeds = graph.feeds_outputs();
    let production =
        graph.nodes.iter().enumerate().filter(|(i, n)| feeds[*i] && !matches!(n.op, Op::Tap { .. }));
    let judged = |n: &Node| checks.iter().any(|c| c.forced && c.op == n.path());
    // Rows of the logits are a copy that the stage behind it shows.
    production.filter(|(_, n)| !matches!(n.op, Op::GetRows) && !judged(n)).count()
}

fn conclusion(
    first: &Option<First>,
    free: &Free<'_>,
    forced: bool,
    unjudged: usize,
    limit: tolerance::Tolerance,
) -> String {
    let near_ties = free.flips.iter().filter(|f| f.flip.near_tie).count();
    let ties = match near_ties {
        0 => String::new(),
        n => format!("; {n} near-tie routing flips, whose successors are judged by the forced run alone"),
    };
    match first {
        Some(f) if f.found_by == "forced" => {
            format!(
                "{} is wrong by itself: with the other side's inputs its own error is {:.3e}",
                f.op, f.local_error
            )
        }
        Some(f) if !forced => format!(
            "{} is the first beyond tolerance in the free run; a forced run tells whether it inherited that",
            f.op
        ),
        Some(f) if unjudged > 0 => format!(
            "{} is the first beyond tolerance in the free run; the other side lacks stages, so that {unjudged} ops could not be judged by themselves",
            f.op
        ),
        Some(f) => format!(
            "{} is the first beyond tolerance in the free run, yet with the other side's inputs every op is within its own: the difference grows by rounding, or arises between steps",
            f.op
        ),
        None if unjudged > 0 => format!(
            "everything is within tolerance{ties}; {unjudged} ops were judged by the free run alone, as the other side lacks their inputs or outputs"
        ),
        None if !forced && limit.value > 0.0 => format!(
            "everything is within the free run's tolerance{ties}; smaller faults are within it too: --forced judges each op by itself"
        ),
        None => format!("everything is within tolerance{ties}"),
    }
}
