//! Stage 5, wgpu: runs steps. Inputs → one compute pass and one submission → logits and a token on the device.
//!
//! A step's commands depend on its sizes only. So before the host waits for what a step of one token chose, it encodes the
//! next one; the token then comes with the inputs.
//!
//! With an observer the same dispatches run launch by launch, each waited for, so that values can be read and replaced
//! between any two.

use super::choose::{Choice, Chooser, ResultCopy};
use super::compile::{Program, Ready, STEP_BYTES};
use super::device::Device;
use super::held::Held;
use super::pipelines::Pipelines;
use super::plans::{ArenaMap, Logits};
use super::state::{StateGroups, WgpuState};
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{DType, RopeTableId, StepSizes, ValueId};
use moe_run_graph::passes::Plan;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    Executable, ExecutableInfo, HostTensor, KvType, MAX_CANDIDATES, Observer, State, StepInput, StepLimits,
    StepTokens, TensorData, deliver_taps, not_taken,
};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A compiled graph on a device.
pub(super) struct WgpuExecutable {
    pub(super) device: Arc<Device>,
    /// Its caches hold it, too: another executable on the same device has another.
    pub(super) identity: Arc<()>,
    pub(super) programs: Vec<Program>,
    pipelines: Pipelines,
    arena: wgpu::Buffer,
    now: wgpu::Buffer,
    map: ArenaMap,
    /// `None` where the graph's output is no logits.
    chooser: Option<Chooser>,
    staging: Option<wgpu::Buffer>,
    timer: Option<Timer>,
    info: ExecutableInfo,
    vocab_size: Option<usize>,
    /// The program and the sizes of the last step.
    last: Option<(usize, StepSizes)>,
    /// The cache of the last step.
    last_groups: Weak<StateGroups>,
    /// The next step's commands, encoded while the last one runs.
    prepared: Option<Prepared>,
    angles: Vec<f32>,
}

/// Commands of a step that has not begun.
struct Prepared {
    program: usize,
    sizes: StepSizes,
    groups: Arc<StateGroups>,
    copy: Option<ResultCopy>,
    commands: wgpu::CommandBuffer,
}

/// Two timestamps around a launch.
struct Timer {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    period_ns: f32,
}

/// Positions that one part of a split attention takes at least.
const SPLIT_POSITIONS: usize = 128;

/// Positions of a tile in attention.wgsl.
const TILE_POSITIONS: usize = 32;

impl WgpuExecutable {
    pub(super) fn new(
        device: Arc<Device>,
        programs: Vec<Program>,
        pipelines: Pipelines,
        arena: wgpu::Buffer,
        now: wgpu::Buffer,
        map: ArenaMap,
        chooser: Option<Chooser>,
        info: ExecutableInfo,
        vocab_size: Option<usize>,
    ) -> Result<WgpuExecutable, BackendError> {
        let timer = if device.timestamps { Some(Timer::new(&device)?) } else { None };
        Ok(WgpuExecutable {
            device,
            identity: Arc::default(),
            programs,
            pipelines,
            arena,
            now,
            map,
            chooser,
            staging: None,
            timer,
            info,
            vocab_size,
            last: None,
            last_groups: Weak::new(),
            prepared: None,
            angles: Vec::new(),
        })
    }

    pub(super) fn kv_type(&self) -> KvType {
        self.info.kv_type
    }

    /// Writes words of the arena before anything that is submitted later.
    pub(super) fn write_words(&self, at: u64, words: &[u32]) {
        self.device.queue.write_buffer(&self.arena, at * 4, bytemuck::cast_slice(words));
    }

    fn program(&self, tokens: usize) -> usize {
        let fits = self.programs.iter().position(|p| p.plan.max_sizes.tokens >= tokens);
        fits.unwrap_or(self.programs.len() - 1)
    }

    /// Over how many workgroups the attention of a head is split, and the positions that each takes.
    fn splits(&self, program: usize, sizes: StepSizes) -> (u32, u32) {
        let most = self.programs[program].max_splits;
        let splits = (sizes.cached / SPLIT_POSITIONS).clamp(1, most);
        let positions = sizes.cached.div_ceil(splits).next_multiple_of(TILE_POSITIONS);
        (sizes.cached.div_ceil(positions).max(1) as u32, positions as u32)
    }

    /// Writes the step's inputs, angles and sizes; what lies side by side at once, for each write costs a staging buffer.
    fn begin(&mut self, program: usize, input: &StepInput<'_>) {
        let graph = &self.programs[program].plan.graph;
        let place = |value: &ValueId| self.map.places.inputs.get(value).copied().unwrap_or(0) as usize;
        let mut pieces: Vec<(usize, Vec<u32>)> = Vec::new();
        if let StepTokens::Host(tokens) = input.tokens {
            pieces.push((place(&graph.inputs.tokens), tokens.iter().map(|t| t.0).collect()));
        }
        for (value, words) in [
            (&graph.inputs.positions, input.positions),
            (&graph.inputs.sequence, input.sequence),
            (&graph.inputs.kv_slots, input.kv_slots),
            (&graph.inputs.logits_rows, input.logits_rows),
        ] {
            pieces.push((place(value), words.to_vec()));
        }
        for (i, spec) in graph.rope_tables.iter().enumerate() {
            let Some(at) = self.map.places.rope.get(&RopeTableId(i as u32)) else { continue };
            self.angles.resize(input.positions.len() * spec.dims, 0.0);
            for (row, position) in self.angles.chunks_exact_mut(spec.dims).zip(input.positions) {
                spec.fill_row(*position, row);
            }
            pieces.push((*at as usize, bytemuck::cast_slice(&self.angles).to_vec()));
        }
        for (at, words) in joined(pieces) {
            self.write_words(at as u64, &words);
        }
        let sizes = input.sizes();
        let (splits, positions) = self.splits(program, sizes);
        let now =
            [sizes.tokens as u32, sizes.logits_rows as u32, sizes.cached as u32, splits, positions, 0, 0, 0];
        debug_assert_eq!(size_of_val(&now) as u64, STEP_BYTES);
        self.device.queue.write_buffer(&self.now, 0, bytemuck::cast_slice(&now));
    }

    /// Encodes dispatches into a pass.
    fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        program: usize,
        dispatches: &[Ready],
        groups: &StateGroups,
        sizes: StepSizes,
    ) {
        let (splits, _) = self.splits(program, sizes);
        for ready in dispatches {
            let [x, y, z] = ready.grid.resolve(sizes, splits);
            if [x, y, z].contains(&0) || (ready.when_split && splits == 1) {
                continue;
            }
            pass.set_pipeline(&ready.pipeline);
            pass.set_bind_group(0, &ready.bindings, &[]);
            if let Some(group) = groups.get(&ready.state) {
                pass.set_bind_group(1, group, &[]);
            }
            pass.dispatch_workgroups(x, y, z);
        }
    }

    /// The logits' place of the last step's row, in words.
    fn row_at(&self, row: usize) -> Result<(u32, usize), BackendError> {
        let missing = |rows: usize| BackendError::Input(format!("row {row} of {rows} rows of logits"));
        let (Some((program, sizes)), Some(logits)) = (self.last, self.chooser.as_ref().map(|c| c.logits))
        else {
            return Err(missing(0));
        };
        if row >= sizes.logits_rows {
            return Err(missing(sizes.logits_rows));
        }
        let at = self.logits_at(program, logits).ok_or_else(|| missing(0))?;
        Ok((at + (row * logits.vocabulary) as u32, logits.vocabulary))
    }

    /// Where a program's logits lie, in words.
    fn logits_at(&self, program: usize, logits: Logits) -> Option<u32> {
        let slot = self.programs[program].plan.memory.slot(logits.value)?;
        Some(self.map.places.values_at + (slot.offset_bytes / 4) as u32)
    }

    /// Encodes the sampler's dispatches, which [`Chooser::aim`] has pointed at a row.
    fn encode_sampler(&self, pass: &mut wgpu::ComputePass<'_>) {
        let Some(chooser) = &self.chooser else { return };
        let sizes = StepSizes { tokens: 1, logits_rows: 1, cached: 1 };
        self.encode(pass, 0, &chooser.sampling.dispatches, &StateGroups::new(), sizes);
    }

    /// Chooses the candidates of a row of the last step's logits in a submission of its own: for rows that the step has
    /// not chosen from itself.
    fn choose(&mut self, row: usize) -> Result<(), BackendError> {
        let (at, _) = self.row_at(row)?;
        if let Some(chooser) = &mut self.chooser {
            chooser.aim(&self.device, at);
        }
        let mut encoder = self.encoder();
        self.encode_sampler(&mut self.device.pass(&mut encoder, None));
        let copy = self.chooser.as_ref().map(|c| c.encode_copy(&mut encoder, &self.arena, c.next_copy()));
        self.submit(encoder.finish(), copy, row);
        Ok(())
    }

    /// Submits commands that end in a copy of the sampler's result, or in none.
    fn submit(&mut self, commands: wgpu::CommandBuffer, copy: Option<ResultCopy>, row: usize) {
        let submission = self.device.submit(commands);
        if let (Some(copy), Some(chooser)) = (copy, &mut self.chooser) {
            chooser.chosen = Some(Choice { copy, row, submission });
        }
    }

    /// A step's commands: one compute pass, then the copy of what its sampler chose.
    fn record(
        &self,
        program: usize,
        sizes: StepSizes,
        groups: &StateGroups,
        copy: Option<ResultCopy>,
    ) -> wgpu::CommandBuffer {
        let mut encoder = self.encoder();
        {
            let mut pass = self.device.pass(&mut encoder, None);
            for launch in &self.programs[program].launches {
                self.encode(&mut pass, program, launch, groups, sizes);
            }
            if copy.is_some() {
                self.encode_sampler(&mut pass);
            }
        }
        if let (Some(copy), Some(chooser)) = (copy, &self.chooser) {
            chooser.encode_copy(&mut encoder, &self.arena, copy);
        }
        encoder.finish()
    }

    /// The copy that ends a step: one row's logits are chosen from at once.
    fn result_copy(&self, program: usize, sizes: StepSizes) -> Option<ResultCopy> {
        let chooser = self.chooser.as_ref().filter(|_| sizes.logits_rows == 1)?;
        self.logits_at(program, chooser.logits).map(|_| chooser.next_copy())
    }

    /// Encodes the step of one token that is to follow the last one, whatever that token will be.
    fn prepare_next(&mut self) {
        let (Some((_, last)), Some(groups)) = (self.last, self.last_groups.upgrade()) else { return };
        let sizes = StepSizes { tokens: 1, logits_rows: 1, cached: last.cached + 1 };
        let program = self.program(1);
        if sizes.cached > self.programs[program].plan.max_sizes.cached {
            return;
        }
        // A token of the host's waits for no buffer: nothing is taken.
        let copy = self.result_copy(program, sizes).map(|copy| ResultCopy { buffer: 0, ..copy });
        if self.prepared.as_ref().is_some_and(|p| p.is_for(program, sizes, &groups, copy)) {
            return;
        }
        let commands = self.record(program, sizes, &groups, copy);
        self.prepared = Some(Prepared { program, sizes, groups, copy, commands });
    }

    /// The candidates of a row of the last step's logits, `count` at least where there are as many.
    fn chosen(&mut self, row: usize, count: usize) -> Result<Vec<(TokenId, f32)>, BackendError> {
        self.row_at(row)?;
        let is_there = |c: &Chooser| c.chosen.as_ref().is_some_and(|c| c.row == row && c.copy.count >= count);
        if !self.chooser.as_ref().is_some_and(is_there) {
            self.expect_candidates(count);
            self.choose(row)?;
        }
        self.prepare_next();
        match self.chooser.as_ref().and_then(|c| Some((c, c.chosen.as_ref()?))) {
            Some((chooser, choice)) => chooser.read(&self.device, choice),
            None => Err(BackendError::Input(format!("row {row}: there are no logits to choose from"))),
        }
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Copies words of a buffer to the host.
    pub(super) fn read_words(
        &mut self,
        source: Option<&wgpu::Buffer>,
        at: u64,
        words: usize,
    ) -> Result<Vec<u32>, BackendError> {
        if words == 0 {
            return Ok(Vec::new());
        }
        let bytes = words as u64 * 4;
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        if self.staging.as_ref().is_none_or(|s| s.size() < bytes) {
            self.staging =
                Some(self.device.buffer("values read back", bytes, usage, "ask for fewer taps")?);
        }
        let Some(staging) = &self.staging else { return Ok(Vec::new()) };
        let mut encoder = self.encoder();
        encoder.copy_buffer_to_buffer(source.unwrap_or(&self.arena), at * 4, staging, 0, bytes);
        let submission = self.device.submit(encoder.finish());
        self.device.map_words(staging, words, Some(submission))
    }

    pub(super) fn value_at(&self, program: usize, value: ValueId) -> Option<u64> {
        if let Some(at) = self.map.places.inputs.get(&value) {
            return Some(u64::from(*at));
        }
        let slot = self.programs[program].plan.memory.slot(value)?;
        Some(u64::from(self.map.places.values_at) + slot.offset_bytes as u64 / 4)
    }

    pub(super) fn read_value(
        &mut self,
        program: usize,
        sizes: StepSizes,
        value: ValueId,
    ) -> Result<HostTensor, BackendError> {
        let Some(at) = self.value_at(program, value) else {
            return Err(not_stored(value));
        };
        let decl = self.programs[program].plan.graph.value(value);
        let (shape, dtype) = (decl.shape.resolve(sizes), decl.dtype);
        let words = self.read_words(None, at, shape.iter().product())?;
        let data = match dtype {
            DType::U32 => TensorData::U32(words),
            _ => TensorData::F32(words.into_iter().map(f32::from_bits).collect()),
        };
        Ok(HostTensor { shape, data })
    }

    /// A step that is held between its launches.
    fn observed(
        &mut self,
        program: usize,
        state: &mut WgpuState,
        input: &StepInput<'_>,
        observer: &mut dyn Observer,
    ) -> Result<(), BackendError> {
        let plan = self.programs[program].plan.clone();
        let sizes = input.sizes();
        for (i, launch) in plan.launches.iter().enumerate() {
            observer.before_launch(
                &plan,
                launch,
                &mut Held { run: self, state, program, sizes, launch: i },
            )?;
            let elapsed = self.launch(program, i, state, sizes)?;
            let mut held = Held { run: self, state, program, sizes, launch: i };
            observer.after_launch(&plan, launch, elapsed, &mut held)?;
            deliver_taps(&plan, launch, input, &mut held, observer)?;
        }
        Ok(())
    }

    /// Runs one launch and waits for it.
    fn launch(
        &mut self,
        program: usize,
        launch: usize,
        state: &WgpuState,
        sizes: StepSizes,
    ) -> Result<Duration, BackendError> {
        let start = Instant::now();
        let mut encoder = self.encoder();
        {
            let timestamp_writes = self.timer.as_ref().map(|t| wgpu::ComputePassTimestampWrites {
                query_set: &t.queries,
                beginning_of_pass_write_index: Some(0),
                end_of_pass_write_index: Some(1),
            });
            let mut pass = self.device.pass(&mut encoder, timestamp_writes);
            self.encode(&mut pass, program, &self.programs[program].launches[launch], &state.groups, sizes);
        }
        if let Some(timer) = &self.timer {
            encoder.resolve_query_set(&timer.queries, 0..2, &timer.resolved, 0);
        }
        self.device.submit(encoder.finish());
        self.device.wait()?;
        let Some((resolved, period_ns)) = self.timer.as_ref().map(|t| (t.resolved.clone(), t.period_ns))
        else {
            return Ok(start.elapsed());
        };
        let words = self.read_words(Some(&resolved), 0, 4)?;
        let tick = |i: usize| u64::from(words[i]) | u64::from(words[i + 1]) << 32;
        let ticks = tick(2).saturating_sub(tick(0));
        Ok(Duration::from_nanos((ticks as f64 * f64::from(period_ns)) as u64))
    }
}

impl Prepared {
    fn is_for(
        &self,
        program: usize,
        sizes: StepSizes,
        groups: &Arc<StateGroups>,
        copy: Option<ResultCopy>,
    ) -> bool {
        (self.program, self.sizes, self.copy) == (program, sizes, copy) && Arc::ptr_eq(&self.groups, groups)
    }
}

/// Words that are written over what lies between two pieces rather than write those apart.
const GAP_WORDS: usize = 1024;

/// Pieces of the arena's inputs, joined where little lies between them: the unused ends of inputs, which nobody reads.
fn joined(mut pieces: Vec<(usize, Vec<u32>)>) -> Vec<(usize, Vec<u32>)> {
    pieces.retain(|(_, words)| !words.is_empty());
    pieces.sort_by_key(|(at, _)| *at);
    let mut all: Vec<(usize, Vec<u32>)> = Vec::with_capacity(pieces.len());
    for (at, words) in pieces {
        match all.last_mut() {
            Some((begin, run)) if at - *begin <= run.len() + GAP_WORDS => {
                run.resize(at - *begin, 0);
                run.extend(words);
            }
            _ => all.push((at, words)),
        }
    }
    all
}

impl Timer {
    fn new(device: &Device) -> Result<Timer, BackendError> {
        let queries = device.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("launch"),
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        });
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = device.buffer("timestamps", 16, usage, "use another device")?;
        Ok(Timer { queries, resolved, period_ns: device.queue.get_timestamp_period() })
    }
}

fn not_stored(value: ValueId) -> BackendError {
    BackendError::Value { value: value.to_string(), detail: "the plan does not store it".into() }
}

impl Executable for WgpuExecutable {
    fn info(&self) -> &ExecutableInfo {
        &self.info
    }

    fn plan(&self, tokens: usize) -> &Plan {
        &self.programs[self.program(tokens)].plan
    }

    fn new_state(&self) -> Result<Box<dyn State>, BackendError> {
        Ok(Box::new(WgpuState::new(self, &self.pipelines)?))
    }

    fn step(
        &mut self,
        state: &mut dyn State,
        input: &StepInput<'_>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        let program = self.program(input.len());
        let max = self.programs[program].plan.max_sizes;
        input.check(&StepLimits { sizes: max, vocab_size: self.vocab_size, slots: max.cached, places: 1 })?;
        input.check_one_sequence()?;
        let state = state.as_any_mut().downcast_mut::<WgpuState>();
        let Some(state) = state.filter(|s| Arc::ptr_eq(&s.owner, &self.identity)) else {
            return Err(BackendError::Input("the state belongs to another executable".into()));
        };
        self.device.check()?;
        if let StepTokens::Argmax { row } = input.tokens {
            // The sampler left the token where the step reads it.
            self.row_at(row)?;
            if self.chooser.as_ref().and_then(|c| c.chosen.as_ref()).is_none_or(|c| c.row != row) {
                self.choose(row)?;
            }
        }
        let sizes = input.sizes();
        self.begin(program, input);
        self.last = None;
        let logits_at = self.chooser.as_ref().and_then(|c| self.logits_at(program, c.logits));
        if let Some(chooser) = &mut self.chooser {
            let chosen = chooser.chosen.take();
            chooser.taken = chosen.filter(|_| matches!(input.tokens, StepTokens::Argmax { .. }));
        }
        if let Some(observer) = observer {
            self.observed(program, state, input, observer)?;
            self.last = Some((program, sizes));
            return Ok(());
        }
        let copy = self.result_copy(program, sizes);
        if let (Some(at), Some(_), Some(chooser)) = (logits_at, copy, &mut self.chooser) {
            chooser.aim(&self.device, at);
        }
        let prepared = self.prepared.take().filter(|p| p.is_for(program, sizes, &state.groups, copy));
        let commands = match prepared {
            Some(prepared) => {
                self.device.steps_encoded_ahead.fetch_add(1, Ordering::Relaxed);
                prepared.commands
            }
            None => self.record(program, sizes, &state.groups, copy),
        };
        self.submit(commands, copy, 0);
        self.last_groups = Arc::downgrade(&state.groups);
        self.last = Some((program, sizes));
        self.device.check()
    }

    fn logits(&mut self, row: usize, out: &mut Vec<f32>) -> Result<(), BackendError> {
        let (at, vocabulary) = self.row_at(row)?;
        if self.last.is_some_and(|(_, sizes)| sizes.tokens == 1) {
            self.prepare_next();
        }
        let words = self.read_words(None, u64::from(at), vocabulary)?;
        out.clear();
        out.extend(words.into_iter().map(f32::from_bits));
        Ok(())
    }

    fn argmax(&mut self, row: usize) -> Result<TokenId, BackendError> {
        let candidates = self.chosen(row, 1)?;
        candidates.first().map(|(token, _)| *token).ok_or_else(|| BackendError::Input("no logits".into()))
    }

    fn taken(&mut self) -> Result<TokenId, BackendError> {
        let (chooser, taken) =
            self.chooser.as_ref().and_then(|c| Some((c, c.taken.as_ref()?))).ok_or_else(not_taken)?;
        let candidates = chooser.read(&self.device, taken)?;
        candidates.first().map(|(token, _)| *token).ok_or_else(not_taken)
    }

    fn queues_steps(&self) -> bool {
        true
    }

    fn expect_candidates(&mut self, count: usize) {
        if let Some(chooser) = &mut self.chooser {
            chooser.expect(count);
        }
    }

    fn candidates(
        &mut self,
        row: usize,
        count: usize,
        out: &mut Vec<(TokenId, f32)>,
    ) -> Result<(), BackendError> {
        let count = count.clamp(1, MAX_CANDIDATES);
        out.clear();
        out.extend(self.chosen(row, count)?.into_iter().take(count).filter(|(_, l)| *l > f32::NEG_INFINITY));
        Ok(())
    }

    fn wait(&mut self) -> Result<(), BackendError> {
        self.device.wait()
    }

    fn output(&mut self, index: usize) -> Result<HostTensor, BackendError> {
        let missing = || BackendError::Value {
            value: format!("output {index}"),
            detail: "no step has computed it".into(),
        };
        let (program, sizes) = self.last.ok_or_else(missing)?;
        let value = self.programs[program].plan.graph.outputs.get(index).copied().ok_or_else(missing)?;
        self.read_value(program, sizes, value)
    }
}
