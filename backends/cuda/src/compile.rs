//! Graph + loaded weights → executable: memory for the plans, steps.

use super::choose::{Choices, choice_name};
use super::driver::{
    CapturedGraph, DeviceBuffer, Driver, DriverError, KernelLaunch, Param, SWITCHED_OFF, switched_off,
};
use super::ops::{Emit, Prepared, Scratch};
use super::plans::Plans;
use super::state::CudaState;
use super::weights::{CudaWeights, GraphWeights};
use super::{device, fused};
use access::Access;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{DType, Graph, StepSizes, ValueId};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::ActProfile;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    CompileOptions, Executable, ExecutableInfo, HostTensor, Observer, State, StepInput, StepLimits,
    StepTokens, TensorData, deliver_taps,
};
use std::sync::Arc;

mod access;

/// The step's inputs: tokens, positions, sequence, slots, rows.
const INPUTS: usize = 5;

/// Where the values of a plan live.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    plan: &'a Plan,
    arena: &'a DeviceBuffer,
    inputs: &'a DeviceBuffer,
    /// Words from one step input to the next.
    input_stride: usize,
    boundary: &'a [DeviceBuffer],
}

impl Values<'_> {
    /// A value's memory and its bytes in a step; `None` where the plan gives it none.
    pub fn place(&self, id: ValueId, sizes: StepSizes) -> Option<(Param, usize)> {
        let graph = &self.plan.graph;
        let bytes = 4 * graph.value(id).shape.elems(sizes);
        if let Some(i) = self.input_index(id) {
            return Some((self.inputs.slice((i * self.input_stride * 4) as u64, bytes as u64), bytes));
        }
        if let Some(i) = graph.boundary.iter().position(|b| *b == id) {
            return Some((self.boundary[i].slice(0, bytes as u64), bytes));
        }
        let slot = self.plan.memory.slot(id)?;
        Some((self.arena.slice(slot.offset_bytes as u64, bytes as u64), bytes))
    }

    fn input_index(&self, id: ValueId) -> Option<usize> {
        let i = &self.plan.graph.inputs;
        [i.tokens, i.positions, i.sequence, i.kv_slots, i.logits_rows].iter().position(|v| *v == id)
    }
}

/// A plan and its step inputs.
struct Class {
    plan: Plan,
    inputs: DeviceBuffer,
    input_stride: usize,
}

/// The recorded decode step.
struct Recorded {
    state: u64,
    /// How many it chooses from its logits.
    choice: usize,
    graph: Box<dyn CapturedGraph>,
}

/// The last step, for reading its results.
#[derive(Clone, Copy)]
struct LastStep {
    decode: bool,
    sizes: StepSizes,
}

pub(super) struct CudaExecutable {
    pub(super) driver: Arc<dyn Driver>,
    decode: Class,
    prefill: Class,
    arena: DeviceBuffer,
    boundary: Vec<DeviceBuffer>,
    weights: GraphWeights,
    rope_tables: Vec<DeviceBuffer>,
    pub(super) scratch: Scratch,
    profile: ActProfile,
    info: ExecutableInfo,
    vocab_size: Option<usize>,
    recorded: Option<Recorded>,
    /// Every kernel of the decode step has been launched.
    has_decoded: bool,
    /// Every launch is waited for and none recorded: `MOE_RUN_CUDA_OFF=graph`.
    each_alone: bool,
    /// Of the last token of the last step.
    position: u32,
    last: Option<LastStep>,
    pub(super) choices: Choices,
}

/// Compiles a graph that reads loaded weights.
pub(super) fn compile(
    weights: &CudaWeights,
    graph: &Graph,
    options: &CompileOptions,
) -> Result<CudaExecutable, BackendError> {
    let driver = Arc::clone(&weights.driver);
    let graph_weights = weights.of(graph)?;
    let plans = Plans::new(&*driver, graph, weights.size_bytes, options)?;
    let memory = plans.check_memory(&*driver, options, true)?;
    options.tell_opened(&plans.info, "", graph, memory);

    let failed = |e: DriverError| device::error(&driver.info().name, e);
    let max_sizes = plans.prefill.max_sizes;
    let class = |plan: Plan| -> Result<Class, BackendError> {
        let input_stride = plan.max_sizes.tokens.max(options.max_logits_rows).next_multiple_of(64);
        let inputs = DeviceBuffer::new(&driver, (4 * INPUTS * input_stride) as u64).map_err(failed)?;
        Ok(Class { plan, inputs, input_stride })
    };
    let (decode, prefill) = (class(plans.decode)?, class(plans.prefill)?);
    let arena = DeviceBuffer::new(&driver, plans.arena_bytes).map_err(failed)?;
    let boundary = graph
        .boundary
        .iter()
        .map(|v| DeviceBuffer::new(&driver, 4 * graph.value(*v).shape.elems(max_sizes) as u64))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    let rope_tables = graph
        .rope_tables
        .iter()
        .map(|t| DeviceBuffer::from_bytes(&driver, bytemuck::cast_slice(&t.table(options.ctx_size))))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    let scratch = Scratch::new(&driver, plans.scratch)?;
    let choices = Choices::new(&driver, graph)?;
    driver.synchronize().map_err(failed)?;
    Ok(CudaExecutable {
        decode,
        prefill,
        arena,
        boundary,
        weights: graph_weights,
        rope_tables,
        scratch,
        profile: plans.profile,
        info: plans.info,
        vocab_size: graph.vocab_size(),
        recorded: None,
        has_decoded: false,
        each_alone: switched_off("graph"),
        position: 0,
        last: None,
        choices,
        driver,
    })
}

impl CudaExecutable {
    fn class(&self, decode: bool) -> &Class {
        if decode { &self.decode } else { &self.prefill }
    }

    fn values(&self, decode: bool) -> Values<'_> {
        let class = self.class(decode);
        Values {
            plan: &class.plan,
            arena: &self.arena,
            inputs: &class.inputs,
            input_stride: class.input_stride,
            boundary: &self.boundary,
        }
    }

    fn failed(&self, error: DriverError) -> BackendError {
        device::error(&self.info.device, error)
    }

    /// The same, naming what was running.
    pub(super) fn failed_in(&self, what: &str, error: DriverError) -> BackendError {
        match device::error(&self.info.device, error) {
            BackendError::Device { backend, device, detail } => {
                BackendError::Device { backend, device, detail: format!("{what}: {detail}") }
            }
            other => other,
        }
    }

    /// The same where nothing was waited for since the last step began, which may have found the one in front still running.
    pub(super) fn failed_last(&self, error: DriverError) -> BackendError {
        let what = format!(
            "the step at position {} or the one in front of it (with {SWITCHED_OFF}=graph in the environment, the same \
             command waits for every launch and names the one that fails)",
            self.position
        );
        self.failed_in(&what, error)
    }

    /// A launch's kernels.
    fn kernels(
        &self,
        decode: bool,
        launch: &Launch,
        state: &CudaState,
        sizes: StepSizes,
        prepared: &mut Prepared,
    ) -> Result<Vec<KernelLaunch>, BackendError> {
        let class = self.class(decode);
        let mut emit = Emit {
            graph: &class.plan.graph,
            values: self.values(decode),
            sizes,
            weights: &self.weights,
            state,
            rope_tables: &self.rope_tables,
            scratch: &self.scratch,
            profile: self.profile,
            kv_type: self.info.kv_type,
            positions_capacity: class.plan.max_sizes.cached,
            matrix_units: self.driver.info().matrix_units,
            prepared: *prepared,
            launches: Vec::new(),
        };
        let nodes: Vec<_> = class.plan.launch_nodes(launch).collect();
        match nodes.as_slice() {
            [node] => emit.node(node)?,
            group => fused::emit(&mut emit, launch.pattern, group)?,
        }
        *prepared = emit.prepared;
        Ok(emit.launches)
    }

    /// Where a decode step reads its token.
    pub(super) fn next_token(&self) -> Param {
        self.decode.inputs.slice(0, 4)
    }

    /// Uploads the step's inputs; a token chosen on the device is there already.
    fn upload_inputs(&self, decode: bool, input: &StepInput<'_>) -> Result<(), BackendError> {
        let class = self.class(decode);
        let stride = class.input_stride;
        let mut words = vec![0u32; INPUTS * stride];
        let mut put = |i: usize, values: &[u32]| words[i * stride..][..values.len()].copy_from_slice(values);
        let first = match input.tokens {
            StepTokens::Host(tokens) => {
                put(0, &tokens.iter().map(|t| t.0).collect::<Vec<_>>());
                0
            }
            StepTokens::Argmax { .. } => stride,
        };
        put(1, input.positions);
        put(2, input.sequence);
        put(3, input.kv_slots);
        put(4, input.logits_rows);
        let address = class.inputs.address() + 4 * first as u64;
        self.driver.upload(address, bytemuck::cast_slice(&words[first..])).map_err(|e| self.failed(e))
    }

    /// Queues kernels; where every launch stands alone, waits for them, so that an error is theirs.
    pub(super) fn launch(
        &self,
        kernels: &[KernelLaunch],
        name: impl Fn() -> String,
    ) -> Result<(), BackendError> {
        let queued = self.driver.launch(kernels);
        let done = if self.each_alone { queued.and_then(|()| self.driver.synchronize()) } else { queued };
        done.map_err(|e| self.failed_in(&name(), e))
    }

    /// A row of the last step's logits on the device, and its elements.
    pub(super) fn logits_row(&self, row: usize) -> Result<(Param, usize), BackendError> {
        let missing = || BackendError::Input(format!("row {row} of logits: the last step made no such row"));
        let last = self.last.ok_or_else(missing)?;
        self.row_of_step(last.decode, last.sizes, row).ok_or_else(missing)
    }

    fn row_of_step(&self, decode: bool, sizes: StepSizes, row: usize) -> Option<(Param, usize)> {
        let graph = &self.class(decode).plan.graph;
        let output = *graph.outputs.first()?;
        let width = graph.value(output).shape.width()?;
        match self.values(decode).place(output, sizes)? {
            (Param::Memory { address, bytes }, _) if (row + 1) * width * 4 <= bytes as usize => {
                let address = address + (4 * row * width) as u64;
                Some((Param::Memory { address, bytes: 4 * width as u64 }, width))
            }
            _ => None,
        }
    }

    /// All production launches of a step, without stopping between them, and the choice of so many from its one row of logits.
    fn run(
        &mut self,
        decode: bool,
        state: &CudaState,
        sizes: StepSizes,
        choice: usize,
    ) -> Result<(), BackendError> {
        // A decode step is the same launches every time: what differs is read from device memory.
        // The first is run as it is: a driver may load a kernel as late as at its first launch, and for that must do what a
        // recording forbids.
        let recordable = decode
            && sizes.logits_rows == 1
            && !self.each_alone
            && self.has_decoded
            && self.choices.can_be_recorded(choice);
        if recordable
            && let Some(recorded) = &self.recorded
            && (recorded.state, recorded.choice) == (state.id, choice)
        {
            return recorded.graph.replay().map_err(|e| self.failed_in("decode step", e));
        }
        let mut all = Vec::new();
        let mut prepared = Prepared::default();
        for launch in self.class(decode).plan.launches.iter().filter(|l| !l.recomputed) {
            let kernels = self.kernels(decode, launch, state, sizes, &mut prepared)?;
            if recordable {
                all.extend(kernels);
            } else {
                self.launch(&kernels, || launch_name(&self.class(decode).plan, launch))?;
            }
        }
        if choice > 0
            && let Some(logits) = self.row_of_step(decode, sizes, 0)
        {
            let kernels = self.choice_kernels(logits, choice);
            if recordable {
                all.extend(kernels);
            } else {
                self.launch(&kernels, || choice_name(choice).into())?;
                self.choices.were_launched(choice);
            }
        }
        if recordable {
            let graph =
                self.driver.capture(&all).map_err(|e| self.failed_in("recording the decode step", e))?;
            graph.replay().map_err(|e| self.failed_in("decode step", e))?;
            self.recorded = Some(Recorded { state: state.id, choice, graph });
        }
        // Without a row of logits the last kernels have nothing to do.
        self.has_decoded |= decode && sizes.logits_rows == 1;
        Ok(())
    }

    /// The same launches, held between any two.
    fn run_observed(
        &self,
        decode: bool,
        state: &CudaState,
        input: &StepInput<'_>,
        observer: &mut dyn Observer,
    ) -> Result<(), BackendError> {
        let plan = &self.class(decode).plan;
        let sizes = input.sizes();
        let mut access = Access { executable: self, decode, state, sizes };
        for launch in &plan.launches {
            observer.before_launch(plan, launch, &mut access)?;
            // The observer may have replaced what a launch before prepared from.
            let kernels = self.kernels(decode, launch, state, sizes, &mut Prepared::default())?;
            let elapsed = self
                .driver
                .launch_timed(&kernels)
                .map_err(|e| self.failed_in(&launch_name(plan, launch), e))?;
            observer.after_launch(plan, launch, elapsed, &mut access)?;
            deliver_taps(plan, launch, input, &mut access, observer)?;
        }
        Ok(())
    }

    fn read_value(&self, decode: bool, id: ValueId, sizes: StepSizes) -> Result<HostTensor, BackendError> {
        let value = self.class(decode).plan.graph.value(id);
        let Some((Param::Memory { address, .. }, bytes)) = self.values(decode).place(id, sizes) else {
            return Err(BackendError::Value {
                value: id.to_string(),
                detail: "the plan does not store it".into(),
            });
        };
        let mut words = vec![0u32; bytes / 4];
        self.driver.download(address, bytemuck::cast_slice_mut(&mut words)).map_err(|e| self.failed(e))?;
        let data = match value.dtype {
            DType::U32 => TensorData::U32(words),
            DType::F32 | DType::State => TensorData::F32(words.into_iter().map(f32::from_bits).collect()),
        };
        Ok(HostTensor { shape: value.shape.resolve(sizes), data })
    }
}

/// Bytes of the copy that measures the device's memory, where so much is free: no cache holds them.
const COPY_BYTES: u64 = 1 << 30;
/// `layer-3/q_proj`, or the first and the last node of a group.
fn launch_name(plan: &Plan, launch: &Launch) -> String {
    let nodes: Vec<_> = plan.launch_nodes(launch).collect();
    match nodes.as_slice() {
        [] => launch.pattern.to_owned(),
        [node] => format!("{} ({})", node.path(), node.op.stem()),
        [first, .., last] => format!("{} ({} to {})", launch.pattern, first.path(), last.path()),
    }
}

impl Executable for CudaExecutable {
    fn info(&self) -> &ExecutableInfo {
        &self.info
    }

    fn plan(&self, tokens: usize) -> &Plan {
        &self.class(tokens <= 1).plan
    }

    fn new_state(&self) -> Result<Box<dyn State>, BackendError> {
        let plan = &self.prefill.plan;
        let state = CudaState::new(&self.driver, &plan.graph, self.info.kv_type, plan.max_sizes.cached)?;
        Ok(Box::new(state))
    }

    fn step(
        &mut self,
        state: &mut dyn State,
        input: &StepInput<'_>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        let max = self.prefill.plan.max_sizes;
        input.check(&StepLimits { sizes: max, vocab_size: self.vocab_size, slots: max.cached, places: 1 })?;
        input.check_one_sequence()?;
        let Some(state) = state.as_any_mut().downcast_mut::<CudaState>() else {
            return Err(BackendError::Input("the state belongs to another backend".into()));
        };
        let decode = input.len() == 1;
        self.position = input.positions.last().copied().unwrap_or(0);
        if let StepTokens::Argmax { row } = input.tokens {
            self.choose_next_token(row)?;
        }
        self.choices.begin(matches!(input.tokens, StepTokens::Argmax { .. }));
        self.last = None;
        self.upload_inputs(decode, input)?;
        let sizes = input.sizes();
        match observer {
            None => {
                let choice = self.choices.behind(sizes);
                self.run(decode, state, sizes, choice)?;
                if choice > 0 {
                    self.post_choice(0, choice)?;
                }
            }
            Some(observer) => self.run_observed(decode, state, input, observer)?,
        }
        self.last = Some(LastStep { decode, sizes });
        Ok(())
    }

    fn logits(&mut self, row: usize, out: &mut Vec<f32>) -> Result<(), BackendError> {
        let (Param::Memory { address, .. }, width) = self.logits_row(row)? else { return Ok(()) };
        out.clear();
        out.resize(width, 0.0);
        self.driver.download(address, bytemuck::cast_slice_mut(out)).map_err(|e| self.failed_last(e))
    }

    fn argmax(&mut self, row: usize) -> Result<TokenId, BackendError> {
        self.choose_best(row)
    }

    fn taken(&mut self) -> Result<TokenId, BackendError> {
        self.taken_token()
    }

    fn queues_steps(&self) -> bool {
        true
    }

    fn expect_candidates(&mut self, count: usize) {
        self.choices.expect(count);
    }

    fn candidates(
        &mut self,
        row: usize,
        count: usize,
        out: &mut Vec<(TokenId, f32)>,
    ) -> Result<(), BackendError> {
        self.choose_candidates(row, count, out)
    }

    fn copy_bytes_per_second(&mut self) -> Result<Option<f64>, BackendError> {
        let (free, _) = self.driver.memory().map_err(|e| self.failed(e))?;
        let bytes = (free / 4).min(COPY_BYTES);
        self.driver.copy_bytes_per_second(bytes).map(Some).map_err(|e| self.failed(e))
    }

    fn wait(&mut self) -> Result<(), BackendError> {
        self.driver.synchronize().map_err(|e| self.failed_last(e))
    }

    fn output(&mut self, index: usize) -> Result<HostTensor, BackendError> {
        let missing =
            |detail: &str| BackendError::Value { value: format!("output {index}"), detail: detail.into() };
        let last = self.last.ok_or_else(|| missing("no step has computed it"))?;
        let output = self.class(last.decode).plan.graph.outputs.get(index).copied();
        self.read_value(
            last.decode,
            output.ok_or_else(|| missing("the graph has no such output"))?,
            last.sizes,
        )
    }
}
