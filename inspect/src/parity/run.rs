//! The two sides of a comparison: weights that each loads once, and runs of both.

use super::forced::Forced;
use super::free::Free;
use super::source::{Gone, Origin, Sender, Source, choices};
use super::{Against, MICRO_BATCH_TOKENS, Options, ParityError, Subject, uncarry};
use moe_run_graph::ir::Graph;
use moe_run_graph::passes::{Launch, Plan, TapSelection};
use moe_run_graph::quant::ActBlock;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    Backend, CompileOptions, Executable, ExecutableInfo, Observer, TapValue, ValueAccess, WeightSource,
    Weights,
};
use moe_run_runtime::session::{LogitsRows, Session};
use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// Stages that a live side may be ahead.
const STAGES_AHEAD: usize = 64;

/// An observer that compares with a source.
pub(super) trait Checker: Observer {
    /// Nothing more is wanted of the other side.
    fn close(&mut self);
}

impl Checker for Free<'_> {
    fn close(&mut self) {
        self.source.close();
    }
}

impl Checker for Forced<'_> {
    fn close(&mut self) {
        self.source.close();
    }
}

/// What all runs share.
pub(super) struct Run<'a> {
    pub graph: &'a Graph,
    /// The subject's graph.
    subject: &'a Graph,
    pub source: &'a Arc<dyn WeightSource>,
    pub against: Against<'a>,
    pub options: &'a Options,
    /// What the subject is compiled with, every tap among it. What was opened is told as weights are loaded.
    pub compile: CompileOptions,
    /// The subject's.
    weights: Arc<dyn Weights>,
    /// The other side's, once it has run.
    other: OnceCell<Arc<dyn Weights>>,
}

impl<'a> Run<'a> {
    /// Loads the subject's weights.
    pub fn new(
        graph: &'a Graph,
        source: &'a Arc<dyn WeightSource>,
        subject: &Subject<'a>,
        against: Against<'a>,
        options: &'a Options,
        compile: CompileOptions,
    ) -> Result<Run<'a>, ParityError> {
        let weights = subject.backend.load(subject.graph, Arc::clone(&subject.weights), &compile)?;
        let (other, compile) = (OnceCell::new(), CompileOptions { opened: None, ..compile });
        Ok(Run { graph, subject: subject.graph, source, against, options, compile, weights, other })
    }

    /// The subject's executable with these taps.
    pub fn subject(&self, taps: TapSelection) -> Result<Box<dyn Executable>, ParityError> {
        let compile = CompileOptions { taps, ..self.compile.clone() };
        Ok(self.weights.compile(self.subject, &compile)?)
    }

    /// An executable of the other side, a backend, with the arithmetic of the subject's `info`; its weights are loaded for
    /// the first one.
    pub fn other(
        &self,
        backend: &dyn Backend,
        device: Option<&str>,
        info: &ExecutableInfo,
        taps: TapSelection,
    ) -> Result<Box<dyn Executable>, ParityError> {
        let compile = CompileOptions { taps, ..other_compiled(&self.compile, info, device) };
        let weights = match self.other.get() {
            Some(weights) => weights,
            None => {
                let opened = self.options.compile.opened.clone();
                let told = CompileOptions { opened, ..compile.clone() };
                let loaded = backend.load(self.graph, Arc::clone(self.source), &told)?;
                self.other.get_or_init(|| loaded)
            }
        };
        Ok(weights.compile(self.graph, &compile)?)
    }

    /// Runs the subject under the checker that `make` makes from the other side's stages, beside that side.
    pub fn both<C: Checker>(
        &self,
        executable: Box<dyn Executable>,
        hook: Option<&mut dyn Observer>,
        other_info: &mut Option<ExecutableInfo>,
        make: impl FnOnce(Source<'a>) -> C,
    ) -> Result<C, ParityError> {
        let (backend, device) = match self.against {
            Against::Saved(set, _) => {
                let total_tokens = self.options.tokens.len();
                let mut checker =
                    make(Source::new(Origin::Saved { set, total_tokens, every: choices(self.graph) }));
                self.options.drive(executable, &mut checker, hook)?;
                return Ok(checker);
            }
            Against::Backend(backend, device) => (backend, device),
        };
        let other = self.other(backend, device, executable.info(), TapSelection::All)?;
        *other_info = Some(other.info().clone());
        let (sender, receiver) = sync_channel(STAGES_AHEAD);
        let options = self.options;
        std::thread::scope(|scope| {
            let other = std::thread::Builder::new()
                .spawn_scoped(scope, move || options.drive(other, &mut Sender(sender), None));
            let other = other.map_err(|e| BackendError::Device {
                backend: backend.name(),
                device: "host".into(),
                detail: format!("no thread for the other side: {e}"),
            })?;
            let mut checker = make(Source::new(Origin::Live(receiver)));
            let ours = options.drive(executable, &mut checker, hook);
            checker.close();
            let theirs = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match theirs {
                Err(ParityError::Backend(BackendError::Observer(cause))) if cause.is::<Gone>() => {}
                theirs => theirs?,
            }
            ours.map(|()| checker)
        })
    }
}

/// What the other backend is compiled with: the arithmetic of the subject, whose choice may have been its own.
pub(super) fn other_compiled(
    subject: &CompileOptions,
    info: &ExecutableInfo,
    device: Option<&str>,
) -> CompileOptions {
    CompileOptions {
        activations: Some(info.activations),
        q8_super_block: info.q8_super_block,
        kv_type: info.kv_type,
        micro_batch: Some(info.micro_batch),
        device: device.map(str::to_owned),
        ..subject.clone()
    }
}

impl Options {
    /// What the subject is compiled with, given the block that [`agree`] found.
    pub(super) fn compiled(&self, taps: TapSelection, q8_super_block: Option<ActBlock>) -> CompileOptions {
        let tokens = self.tokens.len();
        let micro_batch = self.compile.micro_batch.unwrap_or(MICRO_BATCH_TOKENS).min(tokens);
        CompileOptions {
            ctx_size: tokens.next_multiple_of(64),
            micro_batch: Some(micro_batch),
            max_logits_rows: micro_batch,
            taps,
            q8_super_block,
            ..self.compile.clone()
        }
    }

    /// Evaluates the tokens: most of them in micro-batches, the last ones one by one.
    pub(super) fn drive(
        &self,
        executable: Box<dyn Executable>,
        checker: &mut dyn Observer,
        hook: Option<&mut dyn Observer>,
    ) -> Result<(), ParityError> {
        let mut session = Session::new(executable)?;
        let mut observer = Hooked { checker, hook };
        let (prefill, decode) = self.tokens.split_at(self.tokens.len().saturating_sub(self.decode_tokens));
        session.feed(prefill, LogitsRows::All, Some(&mut observer), |_, _| Ok(())).map_err(uncarry)?;
        for token in decode {
            session.decode(*token, Some(&mut observer)).map_err(uncarry)?;
        }
        Ok(())
    }
}

/// A checker with a hook between its replacing of inputs and its comparing of outputs.
struct Hooked<'a, 'b> {
    checker: &'a mut dyn Observer,
    hook: Option<&'b mut dyn Observer>,
}

impl Observer for Hooked<'_, '_> {
    fn before_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        self.checker.before_launch(plan, launch, values)?;
        self.hook.as_mut().map_or(Ok(()), |h| h.before_launch(plan, launch, values))
    }

    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        elapsed: Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        if let Some(hook) = &mut self.hook {
            hook.after_launch(plan, launch, elapsed, values)?;
        }
        self.checker.after_launch(plan, launch, elapsed, values)
    }

    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        self.checker.tap(tap)
    }
}
