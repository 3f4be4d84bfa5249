//! Graph + loaded weights → executable: memory for the plans, steps.

use super::choices::{Choices, choice_name};
use super::driver::{
    CapturedGraph, DeviceBuffer, Driver, DriverError, KernelLaunch, Param, SWITCHED_OFF, switched_off,
};
use super::ops::{Emit, Prepared, Scratch};
use super::plans::{INPUTS, Plans, input_stride};
use super::state::CudaState;
use super::values::Values;
use super::weights::{CudaWeights, GraphWeights};
use super::{device, dry};
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{DType, Dim, Graph, StateId, StepSizes, ValueId};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::ActProfile;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{CompileOptions, ExecutableInfo, PoolSize};
use moe_run_runtime::runner::{LogitsRow, Recorder, Runner, Step};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A plan and its step inputs.
struct Class {
    plan: Arc<Plan>,
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

/// What runs the launches of one compiled graph.
pub(super) struct CudaRecorder {
    pub(super) driver: Arc<dyn Driver>,
    /// For one token, and for many.
    classes: [Class; 2],
    arena: DeviceBuffer,
    boundary: Vec<DeviceBuffer>,
    weights: GraphWeights,
    rope_tables: Vec<DeviceBuffer>,
    pub(super) scratch: Scratch,
    profile: ActProfile,
    info: ExecutableInfo,
    recorded: Option<Recorded>,
    /// Every kernel of the decode step has been launched.
    has_decoded: bool,
    /// Every launch is waited for and none recorded: `MOE_RUN_CUDA_OFF=graph`.
    each_alone: bool,
    /// The decode step has values of as many elements as positions are cached: its launches are those of its own depth.
    follows_depth: bool,
    /// Of the last token of the last step.
    position: u32,
    pub(super) choices: Choices,
}

/// A compiled graph on a device.
pub(super) type CudaExecutable = Runner<CudaRecorder>;

/// The class of steps of one token.
const DECODE: usize = 0;

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
    // Other options than the weights were loaded with may take other kernels.
    driver.load_kernels(&dry::kernels(&plans, driver.info())?, options.progress.as_deref());

    let failed = |e: DriverError| device::error(&driver.info().name, e);
    let max_sizes = plans.prefill.max_sizes;
    let class = |plan: &Arc<Plan>| -> Result<Class, BackendError> {
        let plan = Arc::clone(plan);
        let input_stride = input_stride(&plan);
        let inputs = DeviceBuffer::new(&driver, (4 * INPUTS * input_stride) as u64).map_err(failed)?;
        Ok(Class { plan, inputs, input_stride })
    };
    let plan_of_class = [Arc::new(plans.decode), Arc::new(plans.prefill)];
    let classes = [class(&plan_of_class[0])?, class(&plan_of_class[1])?];
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
    let follows_depth = follows_depth(&plan_of_class[0]);
    let recorder = CudaRecorder {
        classes,
        arena,
        boundary,
        weights: graph_weights,
        rope_tables,
        scratch,
        profile: plans.profile,
        info: plans.info,
        recorded: None,
        has_decoded: false,
        each_alone: switched_off("graph"),
        follows_depth,
        position: 0,
        choices,
        driver,
    };
    Ok(Runner::new(recorder, plan_of_class.into()))
}

impl CudaRecorder {
    fn values(&self, class: usize) -> Values<'_> {
        let class = &self.classes[class];
        Values {
            plan: &class.plan,
            arena: &self.arena,
            inputs: &class.inputs,
            input_stride: class.input_stride,
            boundary: &self.boundary,
        }
    }

    /// What a state is made for.
    fn states(&self) -> PoolSize {
        PoolSize::of_one(self.classes[DECODE].plan.max_sizes.cached, self.info.micro_batch)
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
        step: &Step<'_>,
        launch: &Launch,
        state: &CudaState,
        prepared: &mut Prepared,
    ) -> Result<Vec<KernelLaunch>, BackendError> {
        let mut emit = Emit {
            driver: &*self.driver,
            graph: &step.plan.graph,
            values: self.values(step.class),
            sizes: step.sizes,
            weights: &self.weights,
            state,
            rope_tables: &self.rope_tables,
            scratch: &self.scratch,
            profile: self.profile,
            kv_type: self.info.kv_type,
            positions_capacity: step.plan.max_sizes.cached,
            matrix_units: self.driver.info().matrix_units,
            prepared: *prepared,
            launches: Vec::new(),
        };
        emit.launch(step.plan, launch)?;
        *prepared = emit.prepared;
        Ok(emit.launches)
    }

    /// Where a decode step reads its token.
    pub(super) fn next_token(&self) -> Param {
        self.classes[DECODE].inputs.slice(0, 4)
    }

    /// Uploads the step's inputs; a token chosen on the device is there already.
    fn upload_inputs(&self, step: &Step<'_>) -> Result<(), BackendError> {
        let Class { inputs, input_stride, .. } = &self.classes[step.class];
        let mut words = vec![0u32; INPUTS * input_stride];
        for (place, (_, given)) in words.chunks_exact_mut(*input_stride).zip(step.inputs()) {
            if let Some(given) = given {
                place[..given.len()].copy_from_slice(given);
            }
        }
        let first = if step.takes_choice() { *input_stride } else { 0 };
        let address = inputs.address() + 4 * first as u64;
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

    /// A row of logits on the device, and those of its elements that may be chosen.
    pub(super) fn logits_row(&self, row: &LogitsRow) -> Result<(Param, usize), BackendError> {
        match self.values(row.class).place(row.value, row.sizes) {
            Some((Param::Memory { address, .. }, _)) => {
                let address = address + (4 * row.row * row.width) as u64;
                Ok((Param::Memory { address, bytes: 4 * row.width as u64 }, row.choosable))
            }
            _ => Err(BackendError::Input(format!("row {} of logits: the plan does not store them", row.row))),
        }
    }

    /// All production launches of a step, without stopping between them, and the choice of so many from its one row of logits.
    fn run_all(&mut self, step: &Step<'_>, state: &CudaState, choice: usize) -> Result<(), BackendError> {
        let decode = step.class == DECODE;
        // A decode step is the same launches every time: what differs is read from device memory. Scores that production reads
        // (an indexer's) are the exception.
        // The first is run as it is: a driver may load a kernel as late as at its first launch, and for that must do what a
        // recording forbids.
        let recordable = decode
            && step.sizes.logits_rows == 1
            && !self.each_alone
            && !self.follows_depth
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
        for launch in step.plan.launches.iter().filter(|l| !l.recomputed) {
            let kernels = self.kernels(step, launch, state, &mut prepared)?;
            if recordable {
                all.extend(kernels);
            } else {
                self.launch(&kernels, || launch_name(step.plan, launch))?;
            }
        }
        if choice > 0
            && let Some(logits) = LogitsRow::of(step.plan, step.class, step.sizes, 0)
        {
            let kernels = self.choice_kernels(self.logits_row(&logits)?, choice);
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
        self.has_decoded |= decode && step.sizes.logits_rows == 1;
        Ok(())
    }
}

/// Whether a launch that feeds the outputs leaves values whose size is that of the cache so far.
fn follows_depth(plan: &Plan) -> bool {
    let production = plan.launches.iter().filter(|launch| !launch.recomputed);
    let mut values = production
        .flat_map(|launch| plan.launch_nodes(launch))
        .flat_map(|node| &node.outputs)
        .map(|id| plan.graph.value(*id));
    values.any(|value| value.dtype != DType::State && value.shape.0.contains(&Dim::Cached))
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

impl Recorder for CudaRecorder {
    type State = CudaState;

    fn info(&self) -> &ExecutableInfo {
        &self.info
    }

    fn new_state(&self) -> Result<CudaState, BackendError> {
        let plan = &self.classes[DECODE].plan;
        CudaState::new(&self.driver, &plan.graph, self.info.kv_type, self.states())
    }

    fn fits(&self, state: &CudaState) -> bool {
        let plan = &self.classes[DECODE].plan;
        state.is_for(&self.driver, &plan.graph, self.info.kv_type, self.states())
    }

    fn choose_next(&mut self, row: &LogitsRow) -> Result<Option<TokenId>, BackendError> {
        self.choose_next_token(row).map(|()| None)
    }

    fn begin(&mut self, step: &Step<'_>) -> Result<(), BackendError> {
        self.position = step.input.positions.last().copied().unwrap_or(0);
        self.choices.begin(step.takes_choice());
        self.upload_inputs(step)
    }

    fn run(&mut self, step: &Step<'_>, state: &mut CudaState) -> Result<(), BackendError> {
        let choice = self.choices.behind(step.sizes);
        self.run_all(step, state, choice)?;
        if choice > 0 { self.post_choice(0, choice) } else { Ok(()) }
    }

    fn run_launch(
        &mut self,
        step: &Step<'_>,
        launch: usize,
        state: &mut CudaState,
    ) -> Result<Duration, BackendError> {
        let launch = &step.plan.launches[launch];
        // The observer may have replaced what a launch before prepared from.
        let kernels = self.kernels(step, launch, state, &mut Prepared::default())?;
        self.driver.launch_timed(&kernels).map_err(|e| self.failed_in(&launch_name(step.plan, launch), e))
    }

    fn read(
        &mut self,
        class: usize,
        sizes: StepSizes,
        value: ValueId,
    ) -> Result<Option<Cow<'_, [u32]>>, BackendError> {
        let Some((Param::Memory { address, .. }, bytes)) = self.values(class).place(value, sizes) else {
            return Ok(None);
        };
        let mut words = vec![0u32; bytes / 4];
        self.driver.download(address, bytemuck::cast_slice_mut(&mut words)).map_err(|e| self.failed(e))?;
        Ok(Some(Cow::Owned(words)))
    }

    fn write(
        &mut self,
        class: usize,
        sizes: StepSizes,
        value: ValueId,
        words: &[u32],
    ) -> Result<bool, BackendError> {
        let Some((Param::Memory { address, .. }, _)) = self.values(class).place(value, sizes) else {
            return Ok(false);
        };
        self.driver.upload(address, bytemuck::cast_slice(words)).map_err(|e| self.failed(e))?;
        Ok(true)
    }

    fn read_state(
        &mut self,
        state: &CudaState,
        id: StateId,
        slots: Range<usize>,
    ) -> Result<Vec<f32>, BackendError> {
        state.read(id, slots)
    }

    fn write_state(
        &mut self,
        state: &mut CudaState,
        id: StateId,
        first_slot: usize,
        rows: &[f32],
    ) -> Result<(), BackendError> {
        state.write(id, first_slot, rows)
    }

    fn logits(&mut self, row: &LogitsRow, out: &mut Vec<f32>) -> Result<(), BackendError> {
        let (Param::Memory { address, .. }, _) = self.logits_row(row)? else { return Ok(()) };
        out.clear();
        out.resize(row.width, 0.0);
        self.driver.download(address, bytemuck::cast_slice_mut(out)).map_err(|e| self.failed_last(e))
    }

    fn argmax(&mut self, row: &LogitsRow) -> Result<TokenId, BackendError> {
        self.choose_best(row)
    }

    fn candidates(
        &mut self,
        row: &LogitsRow,
        count: usize,
        out: &mut Vec<(TokenId, f32)>,
    ) -> Result<(), BackendError> {
        self.choose_candidates(row, count, out)
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

    fn copy_bytes_per_second(&mut self) -> Result<Option<f64>, BackendError> {
        let (free, _) = self.driver.memory().map_err(|e| self.failed(e))?;
        let bytes = (free / 4).min(COPY_BYTES);
        self.driver.copy_bytes_per_second(bytes).map(Some).map_err(|e| self.failed(e))
    }

    fn wait(&mut self) -> Result<(), BackendError> {
        self.driver.synchronize().map_err(|e| self.failed_last(e))
    }
}
