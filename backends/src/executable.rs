//! Stage 5: the contract between a backend and everything that drives or watches it.
//!
//! Input: a lowered graph, its weights and options. Output: an [`Executable`] that runs steps on declared state. The
//! same executable answers, is traced, is compared and is timed: an [`Observer`] only makes it stop between launches.

pub use crate::checks::{check_kv_rows, check_step_operands};
pub use crate::choice::{MAX_CANDIDATES, argmax, best_candidates, nan_logit, not_taken};
use crate::error::BackendError;
pub use crate::options::{Activations, CompileOptions, KvType, MemoryNeed, OnOpened, Opened, Progress};
pub use crate::tensor::{HostTensor, TensorData, TensorView, ViewData};
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

/// Where weights come from: a mapped GGUF file, or memory in tests.
pub trait WeightSource: Send + Sync {
    /// The bytes of a tensor, rows in order; `None` if there is no such tensor.
    fn bytes(&self, name: &str) -> Option<&[u8]>;
}

impl WeightSource for moe_run_graph::gguf::GgufFile {
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.tensor(name).map(|t| self.data(t))
    }
}

impl WeightSource for std::collections::HashMap<String, Vec<u8>> {
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.get(name).map(Vec::as_slice)
    }
}

/// Checks that every weight of a graph is there with the bytes that its shape and format say.
///
/// # Errors
/// [`BackendError::Weight`] naming the tensor.
pub fn check_weights(graph: &Graph, weights: &dyn WeightSource) -> Result<(), BackendError> {
    for decl in &graph.weights {
        let cols = decl.shape.last().copied().unwrap_or(0);
        let rows: usize = decl.shape[..decl.shape.len().saturating_sub(1)].iter().product();
        let wanted_bytes =
            decl.format.row_bytes(cols).and_then(|b| b.checked_mul(rows)).unwrap_or(usize::MAX);
        let found_bytes = weights.bytes(&decl.name).map_or(0, <[u8]>::len);
        if found_bytes != wanted_bytes {
            return Err(BackendError::Weight { name: decl.name.clone(), wanted_bytes, found_bytes });
        }
    }
    Ok(())
}

/// Bytes of a graph's weights as their source holds them.
#[must_use]
pub fn mapped_bytes(graph: &Graph, weights: &dyn WeightSource) -> u64 {
    graph.weights.iter().map(|decl| weights.bytes(&decl.name).map_or(0, <[u8]>::len) as u64).sum()
}

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

/// One step's input. One sequence is run today: `kv_slots[i] == positions[i]`, ascending by one, `sequence` all 0;
/// a backend refuses anything else with [`BackendError::Input`].
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// T ids.
    pub tokens: StepTokens<'a>,
    /// T positions.
    pub positions: &'a [u32],
    /// T sequence numbers.
    pub sequence: &'a [u32],
    /// T places in the state.
    pub kv_slots: &'a [u32],
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

impl StepInput<'_> {
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

    /// T, R and S of the step.
    #[must_use]
    pub fn sizes(&self) -> StepSizes {
        let cached = self.kv_slots.iter().max().map_or(0, |s| *s as usize + 1);
        StepSizes { tokens: self.len(), logits_rows: self.logits_rows.len(), cached }
    }

    /// Checks lengths, rows, capacity, token ids and that it is one sequence, contiguous.
    ///
    /// # Errors
    /// [`BackendError::Input`] or [`BackendError::ContextFull`].
    pub fn check(&self, max: StepSizes, vocab_size: Option<usize>) -> Result<(), BackendError> {
        let t = self.len();
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
            if let Some(vocab_size) = vocab_size
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
        let contiguous = self.positions.windows(2).all(|w| w[1] == w[0] + 1);
        if !contiguous || self.positions != self.kv_slots || self.sequence.iter().any(|s| *s != 0) {
            return wrong("only one contiguous sequence is run: slots equal to positions".into());
        }
        let wanted_tokens = self.sizes().cached;
        if wanted_tokens > max.cached {
            return Err(BackendError::ContextFull { wanted_tokens, capacity_tokens: max.cached });
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

/// The state that a graph declares, allocated on a device: what a session holds between steps.
pub trait State: Send {
    /// Positions that fit.
    fn capacity_tokens(&self) -> usize;

    /// Memory taken.
    fn size_bytes(&self) -> u64;

    /// Forgets everything from position `len_tokens` on. A state that cannot go back refuses.
    ///
    /// # Errors
    /// [`BackendError::Value`] where the state cannot be truncated.
    fn truncate(&mut self, len_tokens: usize) -> Result<(), BackendError>;

    /// For the backend's own use.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// A compiled graph: plans for its token classes and the weights, immutable; steps run on a [`State`].
pub trait Executable: Send {
    /// What it is.
    fn info(&self) -> &ExecutableInfo;

    /// The plan that a step of `tokens` tokens runs.
    fn plan(&self, tokens: usize) -> &Plan;

    /// Allocates the declared state for the compiled context size.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`] with the arithmetic.
    fn new_state(&self) -> Result<Box<dyn State>, BackendError>;

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

    /// Compiles a graph (a whole model or a segment).
    ///
    /// # Errors
    /// [`BackendError`] for what the backend lacks, missing weights, no device, no memory.
    fn compile(
        &self,
        graph: &Graph,
        weights: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executable>, BackendError>;
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
