//! Stage 5: the contract between a backend and everything that drives or watches it.
//!
//! Input: a lowered graph, its weights and options. Output: an [`Executable`] that runs steps on declared state. The
//! same executable answers, is traced, is compared and is timed: an [`Observer`] only makes it stop between launches.

pub use crate::checks::{check_kv_rows, check_step_operands};
pub use crate::choice::{MAX_CANDIDATES, argmax, best_candidates, nan_logit, not_taken};
use crate::error::BackendError;
pub use crate::kept_rows::KeptRows;
pub use crate::options::{
    Activations, CompileOptions, KvType, MICRO_BATCH, MemoryNeed, OnOpened, Opened, Progress,
};
pub use crate::rings::{PoolSize, Ring, Rings};
pub use crate::step::{
    BLOCK_TOKENS, StepInput, StepLimits, StepRun, StepSequence, StepTokens, blocks_in_order,
};
pub use crate::tensor::{HostTensor, TensorData, TensorView, ViewData};
pub use crate::weights::{WeightSource, WeightTable, Weights, check_weights, mapped_bytes};
use moe_run_graph::dump::KernelInfo;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{Graph, LaunchPattern, Node, Stage, StateId, StepSizes, ValueId};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::{ActBlock, ActProfile};
use serde::Serialize;
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// What sort of device it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// The host's processor.
    Cpu,
    /// A GPU with its own memory.
    DiscreteGpu,
    /// A GPU that shares the host's memory.
    IntegratedGpu,
    /// A GPU interface run by the processor.
    Software,
    /// It is there, but cannot be used: its details say why.
    Unsupported,
}

/// A device that a backend can use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceInfo {
    /// The backend.
    pub backend: &'static str,
    /// What `--device` takes.
    pub index: usize,
    /// The device's name.
    pub name: String,
    /// Its sort.
    pub kind: DeviceKind,
    /// Driver and version, instruction sets, features used.
    pub details: Vec<(String, String)>,
    /// Memory, where it is known.
    pub memory_bytes: Option<u64>,
}

/// What an executable is, for reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExecutableInfo {
    /// The backend.
    pub backend: &'static str,
    /// The device's name.
    pub device: String,
    /// In use.
    pub activations: Activations,
    /// The 8-bit block of super-block formats; `None` unless activations are q8.
    pub q8_super_block: Option<ActBlock>,
    /// In use.
    pub kv_type: KvType,
    /// Threads of a CPU that run, which may be fewer than were asked for; 1 elsewhere.
    pub threads: usize,
    /// The largest T of a step.
    pub micro_batch: usize,
    /// Memory that the executable took for weights beyond the mapping.
    pub weight_bytes: u64,
}

/// The values between launches, while a step is held.
pub trait ValueAccess {
    /// T, R and S of the step.
    fn sizes(&self) -> StepSizes;

    /// A value that the plan stores (or a boundary input), read back to the host.
    ///
    /// # Errors
    /// [`BackendError::Value`] if the plan does not store it.
    fn read(&mut self, value: ValueId) -> Result<HostTensor, BackendError>;

    /// Shows a value where it lies, if the host can see that; else as [`ValueAccess::read`].
    ///
    /// # Errors
    /// As [`ValueAccess::read`], and whatever `look` reports.
    fn show(
        &mut self,
        value: ValueId,
        look: &mut dyn FnMut(TensorView<'_>) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        look(self.read(value)?.view())
    }

    /// Replaces a value: what every later launch of the step reads.
    ///
    /// # Errors
    /// [`BackendError::Value`] if the plan does not store it or the shape differs.
    fn write(&mut self, value: ValueId, tensor: &HostTensor) -> Result<(), BackendError>;

    /// Rows of a state, decoded to f32: `[rows, heads · width]`. Where it has a row for every token, those of the step's first
    /// sequence at these positions; where it has one for a sequence, those of the sequences at these places.
    ///
    /// # Errors
    /// [`BackendError::Value`] for rows beyond the capacity, and those that are no longer held.
    fn read_state(&mut self, state: StateId, rows: Range<usize>) -> Result<Vec<f32>, BackendError>;

    /// Replaces rows of a state from `first` on, counted as [`ValueAccess::read_state`] does, rounding to the KV type.
    ///
    /// # Errors
    /// As [`ValueAccess::read_state`].
    fn write_state(&mut self, state: StateId, first: usize, rows: &[f32]) -> Result<(), BackendError>;
}

/// The value of a tap, on the host.
#[derive(Debug, Clone, Copy)]
pub struct TapValue<'a> {
    /// The stage.
    pub stage: Stage,
    /// Its layer; `None` for the whole model's.
    pub layer: Option<usize>,
    /// Shape and elements.
    pub tensor: TensorView<'a>,
    /// The positions of the step's tokens: the rows along T. (For an axis R see `logits_rows`.)
    pub positions: &'a [u32],
    /// The step's rows of logits, for the stages whose first axis is R.
    pub logits_rows: &'a [u32],
    /// It fed the logits; otherwise it was recomputed beside the kernel that never holds it.
    pub production: bool,
}

/// Looks at a step from between its launches. Every method does nothing unless overridden.
pub trait Observer {
    /// Before a launch: its inputs may be replaced.
    ///
    /// # Errors
    /// Whatever stops the step.
    fn before_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        let _ = (plan, launch, values);
        Ok(())
    }

    /// After a launch, with the time that it took on the device (as well as the backend can tell).
    ///
    /// # Errors
    /// Whatever stops the step.
    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        elapsed: Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        let _ = (plan, launch, elapsed, values);
        Ok(())
    }

    /// A tap of the plan, complete.
    ///
    /// # Errors
    /// Whatever stops the step, such as a full disk.
    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        let _ = tap;
        Ok(())
    }
}

/// The state that a graph declares, allocated on a device: what is held between steps. Rows of tokens are a pool of slots;
/// which of them a sequence has, its blocks say, or, where only a window is read, its place ([`Ring`]). Nothing needs clearing:
/// no op reads a slot behind the query's position, and a sequence's own state begins anew at position 0. Going back is the
/// runtime's to decide, from the declaration and the rings.
pub trait State: Send {
    /// Slots: the tokens that fit, of all sequences together.
    fn capacity_tokens(&self) -> usize;

    /// By state of the graph: those that are rings, of each sequence its own. Empty where none is.
    fn rings(&self) -> &[Option<Ring>] {
        &[]
    }

    /// Sequences that it has a place for.
    fn max_sequences(&self) -> usize {
        1
    }

    /// Whether a block may be of several sequences at once, which then read the same rows. Not where each has a state of its own.
    fn shares_blocks(&self) -> bool {
        false
    }

    /// Bytes of a block's rows in all states that have a row for every token, where blocks can be read and written as bytes.
    fn block_bytes(&self) -> Option<usize> {
        None
    }

    /// Appends a block's rows, as they are stored. Nothing where [`State::block_bytes`] is absent.
    fn read_block(&self, block: u32, out: &mut Vec<u8>) {
        let _ = (block, out);
    }

    /// Replaces a block's rows by what [`State::read_block`] gave. Nothing where [`State::block_bytes`] is absent.
    fn write_block(&mut self, block: u32, bytes: &[u8]) {
        let _ = (block, bytes);
    }

    /// Memory taken.
    fn size_bytes(&self) -> u64;

    /// For the backend's own use.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// What a sequence's own states hold, and of those that are rings what its next token sees.
pub type SequenceStates = Vec<(StateId, KeptRows)>;

/// A compiled graph: plans for its token classes and the weights, immutable; steps run on a [`State`].
pub trait Executable: Send {
    /// What it is.
    fn info(&self) -> &ExecutableInfo;

    /// The plan that a step of `tokens` tokens runs.
    fn plan(&self, tokens: usize) -> &Plan;

    /// Allocates the declared state for one sequence of the compiled context size.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`] with the arithmetic.
    fn new_state(&self) -> Result<Box<dyn State>, BackendError>;

    /// Allocates the declared state for several sequences, which share slots for so many tokens.
    ///
    /// # Errors
    /// As [`Executable::new_state`]; [`BackendError::Input`] where the backend runs one sequence only.
    fn new_pool(&self, tokens: usize, sequences: usize) -> Result<Box<dyn State>, BackendError> {
        let _ = tokens;
        let info = self.info();
        Err(BackendError::Input(format!(
            "state for {sequences} sequences: the {} backend runs one; use another",
            info.backend
        )))
    }

    /// Runs one step. Without an observer: as fast as it goes. With one: the same launches with the same arithmetic,
    /// held between any two.
    ///
    /// # Errors
    /// [`BackendError`]; the state's rows from this step's first position on are then undefined.
    fn step(
        &mut self,
        state: &mut dyn State,
        input: &StepInput<'_>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError>;

    /// Gives a boundary input of the next step, of that step's sizes; what was given is used once.
    ///
    /// # Errors
    /// [`BackendError::Value`] where the graph has no such boundary input; a wrong shape is the step's to refuse.
    fn give(&mut self, value: ValueId, tensor: HostTensor) -> Result<(), BackendError> {
        let _ = tensor;
        Err(BackendError::Value {
            value: value.to_string(),
            detail: "no boundary inputs are taken here".into(),
        })
    }

    /// Whether the sequences of a pool go through a step together; else one after another, each in a state of its own.
    fn runs_together(&self) -> bool {
        false
    }

    /// Runs some launches of a step's plan alone, in their order: those of a part whose inputs were given. What other launches make
    /// is then not to be read.
    ///
    /// # Errors
    /// As [`Executable::step`]; [`BackendError::Input`] where launches cannot be run so.
    fn step_launches(
        &mut self,
        state: &mut dyn State,
        input: &StepInput<'_>,
        launches: &[usize],
    ) -> Result<(), BackendError> {
        let _ = (state, input, launches);
        Err(BackendError::Input(format!("the {} backend runs whole steps only", self.info().backend)))
    }

    /// The logits of one of the last step's rows, copied to the host.
    ///
    /// # Errors
    /// [`BackendError::Input`] if the last step had no such row.
    fn logits(&mut self, row: usize, out: &mut Vec<f32>) -> Result<(), BackendError>;

    /// The first so many of a row's `width` logits may be chosen: [`Graph::choosable`].
    fn choosable(&self, width: usize) -> usize {
        self.plan(1).graph.choosable(width)
    }

    /// The best token of a row, chosen on the device where it can be; the lowest id wins a tie. Only the first
    /// [`Graph::choosable`] logits are looked at: the rest belongs to rows without a token.
    ///
    /// # Errors
    /// As [`Executable::logits`]; a NaN among the logits is [`BackendError::Input`].
    fn argmax(&mut self, row: usize) -> Result<TokenId, BackendError> {
        let mut logits = Vec::new();
        self.logits(row, &mut logits)?;
        argmax(&logits[..self.choosable(logits.len())])
    }

    /// The token that the last step took by [`StepTokens::Argmax`]. Where [`Executable::queues_steps`], it is read while that
    /// step still runs.
    ///
    /// # Errors
    /// [`BackendError::Input`] if the last step's tokens came from the host, or a NaN was among the logits.
    fn taken(&mut self) -> Result<TokenId, BackendError>;

    /// Whether [`Executable::step`] without an observer only queues its work, so that the next token's step can be queued
    /// behind it by [`StepTokens::Argmax`] before its own token is read.
    fn queues_steps(&self) -> bool {
        false
    }

    /// Says how many candidates [`Executable::candidates`] will be asked for behind the steps from now on, 1 to
    /// [`MAX_CANDIDATES`]: a device then chooses them within the step.
    fn expect_candidates(&mut self, count: usize) {
        let _ = count;
    }

    /// The `count` best logits of a row above minus infinity, best first, the lower id first among equals; all of them where
    /// there are fewer. `count` is 1 to [`MAX_CANDIDATES`]. Chosen on the device where it can be, from the logits that
    /// [`Executable::argmax`] looks at.
    ///
    /// # Errors
    /// As [`Executable::argmax`].
    fn candidates(
        &mut self,
        row: usize,
        count: usize,
        out: &mut Vec<(TokenId, f32)>,
    ) -> Result<(), BackendError> {
        let mut logits = Vec::new();
        self.logits(row, &mut logits)?;
        best_candidates(&logits[..self.choosable(logits.len())], count, out)
    }

    /// Bytes a second that a copy within a device's own memory reads and writes; `None` where the backend has none.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    fn copy_bytes_per_second(&mut self) -> Result<Option<f64>, BackendError> {
        Ok(None)
    }

    /// Waits until the last step is done.
    ///
    /// # Errors
    /// [`BackendError::Device`] if it failed.
    fn wait(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// What a sequence's own states hold behind the last step, and of those that are rings the rows that it needs to go on from
    /// its first `len_tokens` tokens, which are there; nothing where they are not read between steps.
    ///
    /// # Errors
    /// What the device reports; a state of another backend.
    fn read_sequence(
        &mut self,
        state: &mut dyn State,
        place: usize,
        len_tokens: usize,
    ) -> Result<SequenceStates, BackendError> {
        let _ = (state, place, len_tokens);
        Ok(SequenceStates::new())
    }

    /// Puts back what [`Executable::read_sequence`] gave for so many tokens.
    ///
    /// # Errors
    /// As there; rows of another number.
    fn restore_sequence(
        &mut self,
        state: &mut dyn State,
        place: usize,
        len_tokens: usize,
        kept: &SequenceStates,
    ) -> Result<(), BackendError> {
        let _ = (state, place, len_tokens, kept);
        Err(BackendError::Input("no states were kept".into()))
    }

    /// A graph output (logits, or whatever a segment ends in) of the last step.
    ///
    /// # Errors
    /// [`BackendError::Value`] if it is no output of the graph.
    fn output(&mut self, index: usize) -> Result<HostTensor, BackendError>;
}

/// Weights, and a graph compiled on them.
pub type Loaded = (Arc<dyn Weights>, Box<dyn Executable>);

/// A way to run graphs.
pub trait Backend: Send + Sync {
    /// What `--backend` takes.
    fn name(&self) -> &'static str;

    /// The devices here; empty, or an error that says what was looked for, where there are none.
    ///
    /// # Errors
    /// [`BackendError::NoDevice`].
    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError>;

    /// Its launch groups for steps of up to `tokens` tokens under the activations of these options, best first.
    fn patterns(&self, tokens: usize, options: &CompileOptions) -> Vec<LaunchPattern>;

    /// Whether it can run a node, and if not, why.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] naming op, format and backend.
    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), BackendError>;

    /// The blocks that it can take for 8-bit activations of super-block formats, its own choice first.
    fn q8_super_blocks(&self) -> &'static [ActBlock];

    /// Whether its arithmetic on 8-bit activations is the reference's to the bit, in models with quantized matrices.
    fn has_reference_bits(&self) -> bool {
        false
    }

    /// Whether weights stay in the mapped file: what a graph does not read of a tensor then takes no memory.
    fn maps_weights(&self) -> bool {
        false
    }

    /// The same backend, whose executables share one open device and what has been compiled for it: for many small graphs
    /// one after another. `None` where opening a device costs nothing.
    fn sharing(&self) -> Option<Box<dyn Backend>> {
        None
    }

    /// The activations that it multiplies quantized weights with under these options; its own where they name none.
    fn profile(&self, options: &CompileOptions) -> ActProfile;

    /// The kernel that runs a launch of a plan made from [`Backend::patterns`], for dumps, under the activations and KV
    /// type of these options; it needs neither weights nor a device. `None` where the launch has no kernel that could be
    /// named.
    fn kernel(&self, plan: &Plan, launch: &Launch, options: &CompileOptions) -> Option<KernelInfo> {
        let _ = (plan, launch, options);
        None
    }

    /// Opens the device and puts a graph's weights there, for any number of executables. Whatever these options make
    /// impossible is refused before the device is opened, or before the first weight goes up.
    ///
    /// # Errors
    /// [`BackendError`] for what the backend lacks, missing weights, no device, no memory for weights, cache and working
    /// memory together.
    fn load(
        &self,
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Arc<dyn Weights>, BackendError>;

    /// Loads the weights of a graph and compiles it: what was opened is told once. A backend that plans to load takes the same
    /// plans.
    ///
    /// # Errors
    /// As [`Backend::load`] and [`Weights::compile`].
    fn load_and_compile(
        &self,
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Loaded, BackendError> {
        let weights = self.load(graph, source, options)?;
        let executable = weights.compile(graph, &CompileOptions { opened: None, ..options.clone() })?;
        Ok((weights, executable))
    }

    /// As [`Backend::load_and_compile`], of a graph (a whole model or a segment) that is needed once.
    ///
    /// # Errors
    /// As [`Backend::load_and_compile`].
    fn compile(
        &self,
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executable>, BackendError> {
        Ok(self.load_and_compile(graph, source, options)?.1)
    }
}

/// Hands the taps of a finished launch to the observer: their inputs, set side by side where there are several.
///
/// # Errors
/// What reading or the observer reports.
pub fn deliver_taps(
    plan: &Plan,
    launch: &Launch,
    input: &StepInput<'_>,
    values: &mut dyn ValueAccess,
    observer: &mut dyn Observer,
) -> Result<(), BackendError> {
    for (node, stage) in plan.launch_taps(launch) {
        let mut deliver = |tensor: TensorView<'_>| {
            observer.tap(&TapValue {
                stage,
                layer: node.layer.map(|l| l.index()),
                tensor,
                positions: input.positions,
                logits_rows: input.logits_rows,
                production: !launch.recomputed,
            })
        };
        match node.inputs.as_slice() {
            [value] => values.show(*value, &mut deliver)?,
            parts => {
                let widths: Vec<usize> =
                    parts.iter().map(|v| plan.graph.value(*v).shape.width().unwrap_or(1)).collect();
                deliver(side_by_side(values, parts, &widths)?.view())?;
            }
        }
    }
    Ok(())
}

/// Values of floats with equal leading axes, joined along the last one, whose sizes are `widths`.
fn side_by_side(
    values: &mut dyn ValueAccess,
    parts: &[ValueId],
    widths: &[usize],
) -> Result<HostTensor, BackendError> {
    let total: usize = widths.iter().sum();
    let (mut shape, mut joined, mut column) = (Vec::new(), Vec::new(), 0);
    for (value, width) in parts.iter().zip(widths) {
        values.show(*value, &mut |part| {
            let elems = part.floats();
            shape = part.shape.to_vec();
            if joined.is_empty() {
                joined = vec![0.0; elems.len() / width * total];
            }
            for (row, elems) in joined.chunks_exact_mut(total).zip(elems.chunks_exact(*width)) {
                row[column..column + width].copy_from_slice(elems);
            }
            Ok(())
        })?;
        column += width;
    }
    if let Some(last) = shape.last_mut() {
        *last = total;
    }
    Ok(HostTensor::f32(shape, joined))
}
