//! Stage 5, wgpu: runs steps. Inputs → one compute pass and one submission → logits and a token on the device.
//!
//! A step's commands depend on its sizes only. So before the host waits for what a step of one token chose, it encodes the
//! next one; the token then comes with the inputs.
//!
//! With an observer the same dispatches run launch by launch, each waited for, so that values can be read and replaced
//! between any two.

use super::choose::{Choice, Chooser, ResultCopy};
use super::device::Device;
use super::pipelines::Pipelines;
use super::plans::{ArenaMap, Logits};
use super::program::{Program, Ready, STEP_BYTES};
use super::rows::{StateRows, decode_row, encode_row};
use super::state::{StateGroups, WgpuState};
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{RopeTableId, StateId, StepSizes, ValueId};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{ExecutableInfo, KvType, MAX_CANDIDATES, PoolSize, not_taken};
use moe_run_runtime::runner::{LogitsRow, Recorder, Runner, Step};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A compiled graph on a device.
pub(super) type WgpuExecutable = Runner<WgpuRecorder>;

/// What runs the dispatches of one compiled graph.
pub(super) struct WgpuRecorder {
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

/// The program of steps of one token.
const DECODE: usize = 0;

/// Positions that one part of a split attention takes at least.
const SPLIT_POSITIONS: usize = 128;

/// Positions of a tile in attention.wgsl.
const TILE_POSITIONS: usize = 32;

impl WgpuRecorder {
    /// Puts the parts of an executable together.
    pub(super) fn executable(
        device: Arc<Device>,
        programs: Vec<Program>,
        pipelines: Pipelines,
        arena: wgpu::Buffer,
        now: wgpu::Buffer,
        map: ArenaMap,
        chooser: Option<Chooser>,
        info: ExecutableInfo,
    ) -> Result<WgpuExecutable, BackendError> {
        let timer = if device.timestamps { Some(Timer::new(&device)?) } else { None };
        let plans = programs.iter().map(|p| Arc::clone(&p.plan)).collect();
        let recorder = WgpuRecorder {
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
            last_groups: Weak::new(),
            prepared: None,
            angles: Vec::new(),
        };
        Ok(Runner::new(recorder, plans))
    }

    pub(super) fn kv_type(&self) -> KvType {
        self.info.kv_type
    }

    /// How a state lies in its buffer.
    fn state_rows(&self, id: StateId) -> StateRows {
        StateRows::of(self.programs[DECODE].plan.graph.state(id), self.kv_type(), self.states())
    }

    /// What a state is made for.
    fn states(&self) -> PoolSize {
        PoolSize::of_one(self.programs[DECODE].plan.max_sizes.cached, self.info.micro_batch)
    }

    /// Writes words of the arena before anything that is submitted later.
    fn write_words(&self, at: u64, words: &[u32]) {
        self.device.queue.write_buffer(&self.arena, at * 4, bytemuck::cast_slice(words));
    }

    /// Over how many workgroups the attention of a head is split, and the positions that each takes.
    fn splits(&self, program: usize, sizes: StepSizes) -> (u32, u32) {
        let most = self.programs[program].max_splits;
        let splits = (sizes.cached / SPLIT_POSITIONS).clamp(1, most);
        let positions = sizes.cached.div_ceil(splits).next_multiple_of(TILE_POSITIONS);
        (sizes.cached.div_ceil(positions).max(1) as u32, positions as u32)
    }

    /// Writes the step's inputs, angles and sizes; what lies side by side at once, for each write costs a staging buffer.
    fn write_inputs(&mut self, step: &Step<'_>) {
        let graph = &step.plan.graph;
        let place = |value: &ValueId| self.map.places.inputs.get(value).copied().unwrap_or(0) as usize;
        let given = step.inputs().into_iter();
        let mut pieces: Vec<(usize, Vec<u32>)> =
            given.filter_map(|(value, words)| Some((place(&value), words?.to_vec()))).collect();
        for (i, spec) in graph.rope_tables.iter().enumerate() {
            let Some(at) = self.map.places.rope.get(&RopeTableId(i as u32)) else { continue };
            self.angles.resize(step.input.positions.len() * spec.dims, 0.0);
            for (row, position) in self.angles.chunks_exact_mut(spec.dims).zip(step.input.positions) {
                spec.fill_row(*position, row);
            }
            pieces.push((*at as usize, bytemuck::cast_slice(&self.angles).to_vec()));
        }
        for (at, words) in joined(pieces) {
            self.write_words(at as u64, &words);
        }
        let sizes = step.sizes;
        let (splits, positions) = self.splits(step.class, sizes);
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

    /// Where a row of logits lies, in words.
    fn row_at(&self, row: &LogitsRow) -> Result<u32, BackendError> {
        let missing = || BackendError::Input(format!("row {}: the plan does not store logits", row.row));
        let at = self.value_at(row.class, row.value).ok_or_else(missing)?;
        Ok(at as u32 + (row.row * row.width) as u32)
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
    fn choose(&mut self, row: &LogitsRow) -> Result<(), BackendError> {
        let at = self.row_at(row)?;
        if let Some(chooser) = &mut self.chooser {
            chooser.aim(&self.device, at);
        }
        let mut encoder = self.encoder();
        self.encode_sampler(&mut self.device.pass(&mut encoder, None));
        let copy = self.chooser.as_ref().map(|c| c.encode_copy(&mut encoder, &self.arena, c.next_copy()));
        self.submit(encoder.finish(), copy, row.row);
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
    fn prepare_next(&mut self, last: StepSizes) {
        let Some(groups) = self.last_groups.upgrade() else { return };
        let sizes = StepSizes { tokens: 1, logits_rows: 1, cached: last.cached + 1 };
        let program = DECODE;
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
    fn chosen(&mut self, row: &LogitsRow, count: usize) -> Result<Vec<(TokenId, f32)>, BackendError> {
        let is_there =
            |c: &Chooser| c.chosen.as_ref().is_some_and(|c| c.row == row.row && c.copy.count >= count);
        if !self.chooser.as_ref().is_some_and(is_there) {
            self.expect_candidates(count);
            self.choose(row)?;
        }
        self.prepare_next(row.sizes);
        match self.chooser.as_ref().and_then(|c| Some((c, c.chosen.as_ref()?))) {
            Some((chooser, choice)) => chooser.read(&self.device, choice),
            None => Err(BackendError::Input(format!("row {}: there are no logits to choose from", row.row))),
        }
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Copies words of a buffer to the host.
    fn read_words(
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

    /// Where a value lies, in words.
    fn value_at(&self, program: usize, value: ValueId) -> Option<u64> {
        if let Some(at) = self.map.places.inputs.get(&value) {
            return Some(u64::from(*at));
        }
        let slot = self.programs[program].plan.memory.slot(value)?;
        Some(u64::from(self.map.places.values_at) + slot.offset_bytes as u64 / 4)
    }

    /// Runs one launch and waits for it.
    fn launch_timed(
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

impl Recorder for WgpuRecorder {
    type State = WgpuState;

    fn info(&self) -> &ExecutableInfo {
        &self.info
    }

    fn new_state(&self) -> Result<WgpuState, BackendError> {
        let (kv_type, size) = (self.kv_type(), self.states());
        WgpuState::new(&self.device, &self.programs, &self.pipelines, kv_type, size, &self.identity)
    }

    fn fits(&self, state: &WgpuState) -> bool {
        Arc::ptr_eq(&state.owner, &self.identity)
    }

    fn check(&self) -> Result<(), BackendError> {
        self.device.check()
    }

    fn choose_next(&mut self, row: &LogitsRow) -> Result<Option<TokenId>, BackendError> {
        // A step leaves what it chose where the next one reads it.
        match self.chooser.as_ref().and_then(|c| c.chosen.as_ref()) {
            Some(chosen) if chosen.row == row.row => {}
            _ => self.choose(row)?,
        }
        Ok(None)
    }

    fn begin(&mut self, step: &Step<'_>) -> Result<(), BackendError> {
        self.write_inputs(step);
        if let Some(chooser) = &mut self.chooser {
            let chosen = chooser.chosen.take();
            chooser.taken = chosen.filter(|_| step.takes_choice());
        }
        Ok(())
    }

    fn run(&mut self, step: &Step<'_>, state: &mut WgpuState) -> Result<(), BackendError> {
        let (program, sizes) = (step.class, step.sizes);
        let copy = self.result_copy(program, sizes);
        let logits_at = self.chooser.as_ref().and_then(|c| self.logits_at(program, c.logits));
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
        self.device.check()
    }

    fn run_launch(
        &mut self,
        step: &Step<'_>,
        launch: usize,
        state: &mut WgpuState,
    ) -> Result<Duration, BackendError> {
        self.launch_timed(step.class, launch, state, step.sizes)
    }

    fn read(
        &mut self,
        class: usize,
        sizes: StepSizes,
        value: ValueId,
    ) -> Result<Option<Cow<'_, [u32]>>, BackendError> {
        let Some(at) = self.value_at(class, value) else { return Ok(None) };
        let words = self.programs[class].plan.graph.value(value).shape.elems(sizes);
        Ok(Some(Cow::Owned(self.read_words(None, at, words)?)))
    }

    fn write(
        &mut self,
        class: usize,
        _sizes: StepSizes,
        value: ValueId,
        words: &[u32],
    ) -> Result<bool, BackendError> {
        let Some(at) = self.value_at(class, value) else { return Ok(false) };
        self.write_words(at, words);
        Ok(true)
    }

    fn read_state(
        &mut self,
        state: &WgpuState,
        id: StateId,
        slots: Range<usize>,
    ) -> Result<Vec<f32>, BackendError> {
        let layout = self.state_rows(id);
        let words = layout.words();
        let buffer = &state.buffers[id.index()];
        let rows = self.read_words(Some(buffer), (slots.start * words) as u64, slots.len() * words)?;
        let decoded = rows.chunks_exact(words).flat_map(|row| decode_row(layout.kv_type, row, layout.elems));
        Ok(decoded.collect())
    }

    fn write_state(
        &mut self,
        state: &mut WgpuState,
        id: StateId,
        first_slot: usize,
        rows: &[f32],
    ) -> Result<(), BackendError> {
        let layout = self.state_rows(id);
        let each = rows.chunks_exact(layout.elems);
        let encoded: Vec<u32> = each.flat_map(|row| encode_row(layout.kv_type, row)).collect();
        let at = (first_slot * layout.words() * 4) as u64;
        self.device.queue.write_buffer(&state.buffers[id.index()], at, bytemuck::cast_slice(&encoded));
        Ok(())
    }

    fn logits(&mut self, row: &LogitsRow, out: &mut Vec<f32>) -> Result<(), BackendError> {
        let at = self.row_at(row)?;
        if row.sizes.tokens == 1 {
            self.prepare_next(row.sizes);
        }
        let words = self.read_words(None, u64::from(at), row.width)?;
        out.clear();
        out.extend(words.into_iter().map(f32::from_bits));
        Ok(())
    }

    fn argmax(&mut self, row: &LogitsRow) -> Result<TokenId, BackendError> {
        let candidates = self.chosen(row, 1)?;
        candidates.first().map(|(token, _)| *token).ok_or_else(|| BackendError::Input("no logits".into()))
    }

    fn candidates(
        &mut self,
        row: &LogitsRow,
        count: usize,
        out: &mut Vec<(TokenId, f32)>,
    ) -> Result<(), BackendError> {
        let count = count.clamp(1, MAX_CANDIDATES);
        out.clear();
        out.extend(self.chosen(row, count)?.into_iter().take(count).filter(|(_, l)| *l > f32::NEG_INFINITY));
        Ok(())
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

    fn wait(&mut self) -> Result<(), BackendError> {
        self.device.wait()
    }
}
