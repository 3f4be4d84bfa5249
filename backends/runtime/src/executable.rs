//! Stage 5: the contract between a backend and everything that drives or watches it.
//!
//! Input: a lowered graph, its weights and options. Output: an [`Executable`] that runs steps on declared state. The
//! same executable answers, is traced, is compared and is timed: an [`Observer`] only makes it stop between launches.

pub use crate::checks::{check_kv_rows, check_step_operands};
pub use crate::choice::{MAX_CANDIDATES, argmax, best_candidates, nan_logit, not_taken};
use crate::error::BackendError;
pub use crate::options::{Activations, CompileOptions, KvType, MemoryNeed, OnOpened, Opened, Progress};
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

/// Tokens of a block: what a sequence's share of the state's pool is counted in.
pub const BLOCK_TOKENS: usize = 64;

/// The blocks of a sequence that has a whole pool of so many tokens for itself, in order: its slots are its positions.
#[must_use]
pub fn blocks_in_order(tokens: usize) -> Box<[u32]> {
    (0..tokens.div_ceil(BLOCK_TOKENS) as u32).collect()
}

/// A sequence that takes part in a step: where its rows lie in the pool of each state.
#[derive(Debug, Clone, Copy)]
pub struct StepSequence<'a> {
    /// The blocks of its positions, in order: position p is in slot `blocks[p / 64] · 64 + p % 64` of every state of rows.
    pub blocks: &'a [u32],
    /// Its place in every state that is one for a whole sequence.
    pub place: u32,
}

impl StepSequence<'_> {
    /// The slot of a position, which its blocks cover.
    #[must_use]
    pub fn slot(&self, position: usize) -> usize {
        self.blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
    }
}

/// Rows of a step that follow each other and belong to one sequence, at ascending positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRun {
    /// Rows of the step.
    pub rows: Range<usize>,
    /// Index into the step's sequences.
    pub sequence: usize,
    /// The position of the first row.
    pub first_position: usize,
}

/// One step's input: rows of one sequence or several. The rows of a sequence follow each other, at positions that ascend by
/// one; `kv_slots` are what the sequences' blocks give.
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// T ids.
    pub tokens: StepTokens<'a>,
    /// T positions.
    pub positions: &'a [u32],
    /// T indices into `sequences`.
    pub sequence: &'a [u32],
    /// T places in the state.
    pub kv_slots: &'a [u32],
    /// The sequences that take part, each in one run of rows.
    pub sequences: &'a [StepSequence<'a>],
    /// R rows (indices into the step's tokens) whose logits are wanted.
    pub logits_rows: &'a [u32],
}

/// Where a step's tokens come from.
#[derive(Debug, Clone, Copy)]
pub enum StepTokens<'a> {
    /// Ids on the host.
    Host(&'a [TokenId]),
    /// The token that [`Executable::argmax`] of the given row chose on the device: it never visits the host.
    Argmax {
        /// The row of the previous step's logits.
        row: usize,
    },
}

/// What a step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// T, R and S at most.
    pub sizes: StepSizes,
    /// Token ids lie below it; `None` where the graph embeds none.
    pub vocab_size: Option<usize>,
    /// Slots of the state's pool.
    pub slots: usize,
    /// Places in states of whole sequences.
    pub places: usize,
}

impl<'a> StepInput<'a> {
    /// T.
    #[must_use]
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// T, R and S of the step; S counts the positions of its longest sequence.
    #[must_use]
    pub fn sizes(&self) -> StepSizes {
        let cached = self.positions.iter().max().map_or(0, |s| *s as usize + 1);
        StepSizes { tokens: self.len(), logits_rows: self.logits_rows.len(), cached }
    }

    /// The runs of rows of one sequence each, in order.
    pub fn runs(&self) -> impl Iterator<Item = StepRun> + use<'a> {
        let (sequence, positions) = (self.sequence, self.positions);
        let mut start = 0;
        std::iter::from_fn(move || {
            let of = *sequence.get(start)?;
            let len = sequence[start..].iter().take_while(|s| **s == of).count();
            let rows = start..start + len;
            start = rows.end;
            Some(StepRun { first_position: positions[rows.start] as usize, rows, sequence: of as usize })
        })
    }

    /// Checks lengths, rows, capacity, token ids, and that each sequence is one run within its own blocks.
    ///
    /// # Errors
    /// [`BackendError::Input`] or [`BackendError::ContextFull`].
    pub fn check(&self, limits: &StepLimits) -> Result<(), BackendError> {
        let (t, max) = (self.len(), limits.sizes);
        let wrong = |what: String| Err(BackendError::Input(what));
        if t == 0 || t > max.tokens {
            return wrong(format!("{t} tokens, wanted 1 to {}", max.tokens));
        }
        if self.sequence.len() != t || self.kv_slots.len() != t {
            return wrong(format!(
                "{t} positions, {} sequences, {} slots",
                self.sequence.len(),
                self.kv_slots.len()
            ));
        }
        if let StepTokens::Host(tokens) = self.tokens {
            if tokens.len() != t {
                return wrong(format!("{t} positions for {} tokens", tokens.len()));
            }
            if let Some(vocab_size) = limits.vocab_size
                && let Some(bad) = tokens.iter().find(|id| id.0 as usize >= vocab_size)
            {
                return wrong(format!("token {} of a vocabulary of {vocab_size}", bad.0));
            }
        } else if t != 1 {
            return wrong(format!("{t} tokens from the device, wanted 1"));
        }
        if self.logits_rows.len() > max.logits_rows {
            return wrong(format!(
                "{} rows of logits, wanted at most {}",
                self.logits_rows.len(),
                max.logits_rows
            ));
        }
        if let Some(row) = self.logits_rows.iter().find(|r| **r as usize >= t) {
            return wrong(format!("row {row} of {t} tokens"));
        }
        let wanted_tokens = self.sizes().cached;
        if wanted_tokens > max.cached {
            return Err(BackendError::ContextFull { wanted_tokens, capacity_tokens: max.cached });
        }
        self.check_runs(limits)
    }

    /// Each sequence is one run, and its rows go to slots of its blocks.
    fn check_runs(&self, limits: &StepLimits) -> Result<(), BackendError> {
        let wrong = |what: String| Err(BackendError::Input(what));
        for (i, run) in self.runs().enumerate() {
            let Some(sequence) = self.sequences.get(run.sequence) else {
                return wrong(format!("sequence {} of {}", run.sequence, self.sequences.len()));
            };
            if self.runs().take(i).any(|other| other.sequence == run.sequence) {
                return wrong(format!("sequence {} in two runs of rows, wanted one", run.sequence));
            }
            if sequence.place as usize >= limits.places {
                return wrong(format!("place {} of {} for sequences", sequence.place, limits.places));
            }
            let blocks = (run.first_position + run.rows.len()).div_ceil(BLOCK_TOKENS);
            let pool = limits.slots.div_ceil(BLOCK_TOKENS);
            match sequence.blocks.get(..blocks) {
                None => {
                    return wrong(format!("{} blocks of a sequence, wanted {blocks}", sequence.blocks.len()));
                }
                Some(blocks) => {
                    if let Some(bad) = blocks.iter().find(|b| **b as usize >= pool) {
                        return wrong(format!("block {bad} of {pool}"));
                    }
                }
            }
            for (row, position) in run.rows.clone().zip(run.first_position..) {
                if self.positions[row] as usize != position {
                    return wrong(format!("position {} where {position} follows", self.positions[row]));
                }
                let slot = sequence.slot(position);
                if self.kv_slots[row] as usize != slot || slot >= limits.slots {
                    return wrong(format!("slot {} of {} for slot {slot}", self.kv_slots[row], limits.slots));
                }
            }
        }
        Ok(())
    }

    /// Refuses what a backend without block tables cannot do: anything but one sequence whose slots are its positions.
    ///
    /// # Errors
    /// [`BackendError::Input`].
    pub fn check_one_sequence(&self) -> Result<(), BackendError> {
        if self.sequences.len() != 1 || self.positions != self.kv_slots {
            return Err(BackendError::Input(
                "a state of one sequence, whose slots are its positions: take a pool for several".into(),
            ));
        }
        Ok(())
    }
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

    /// Rows of a state, decoded to f32: `[slots, heads · width]`.
    ///
    /// # Errors
    /// [`BackendError::Value`] for slots beyond the capacity.
    fn read_state(&mut self, state: StateId, slots: Range<usize>) -> Result<Vec<f32>, BackendError>;

    /// Replaces rows of a state from `first_slot` on, rounding to the KV type.
    ///
    /// # Errors
    /// [`BackendError::Value`] for slots beyond the capacity.
    fn write_state(&mut self, state: StateId, first_slot: usize, rows: &[f32]) -> Result<(), BackendError>;
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
/// which of them a sequence has, its blocks say. Nothing needs clearing: no op reads a slot behind the query's position, and
/// a sequence's own state begins anew at position 0. Going back is the runtime's to decide, from the declaration.
pub trait State: Send {
    /// Slots: the tokens that fit, of all sequences together.
    fn capacity_tokens(&self) -> usize;

    /// Sequences that it has a place for.
    fn max_sequences(&self) -> usize {
        1
    }

    /// Memory taken.
    fn size_bytes(&self) -> u64;

    /// For the backend's own use.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

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

    /// A graph output (logits, or whatever a segment ends in) of the last step.
    ///
    /// # Errors
    /// [`BackendError::Value`] if it is no output of the graph.
    fn output(&mut self, index: usize) -> Result<HostTensor, BackendError>;
}

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

    /// Loads the weights of a graph (a whole model or a segment) and compiles it: for who needs it once.
    ///
    /// # Errors
    /// As [`Backend::load`] and [`Weights::compile`].
    fn compile(
        &self,
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executable>, BackendError> {
        let weights = self.load(graph, source, options)?;
        weights.compile(graph, &CompileOptions { opened: None, ..options.clone() })
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
