//! Stage 5, wgpu: runs steps. Inputs → one compute pass and one submission → logits and a token on the device.
//!
//! With an observer the same dispatches run launch by launch, each waited for, so that values can be read and replaced
//! between any two.

use super::NAME;
use super::compile::{ArenaMap, Logits, Program, Ready, STEP_BYTES, Sampling};
use super::device::Device;
use super::emit::StateBinding;
use super::held::Held;
use super::ops::sample;
use super::pipelines::Pipelines;
use super::state::WgpuState;
use crate::error::BackendError;
use crate::executable::{
    Executable, ExecutableInfo, HostTensor, KvType, Observer, State, StepInput, StepTokens, TensorData,
    argmax, deliver_taps,
};
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{DType, RopeTableId, StepSizes, ValueId};
use moe_run_graph::passes::Plan;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A compiled graph on a device.
pub(super) struct WgpuExecutable {
    pub(super) device: Arc<Device>,
    pub(super) programs: Vec<Program>,
    pipelines: Pipelines,
    arena: wgpu::Buffer,
    now: wgpu::Buffer,
    map: ArenaMap,
    logits: Option<Logits>,
    sampling: Option<Sampling>,
    /// Where the sampler's parameters say that the logits lie.
    sampling_row_at: Option<u32>,
    /// The result of the sampler, copied here behind the step's dispatches.
    sampled: wgpu::Buffer,
    /// Which row `sampled` holds the best token of.
    sampled_row: Option<usize>,
    staging: Option<wgpu::Buffer>,
    timer: Option<Timer>,
    info: ExecutableInfo,
    vocab_size: Option<usize>,
    /// The program and the sizes of the last step.
    last: Option<(usize, StepSizes)>,
    angles: Vec<f32>,
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
        logits: Option<Logits>,
        sampling: Option<Sampling>,
        info: ExecutableInfo,
        vocab_size: Option<usize>,
    ) -> Result<WgpuExecutable, BackendError> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let sampled = device.buffer("the sampled token", SAMPLED_BYTES, usage, "use another device")?;
        let timer = if device.timestamps { Some(Timer::new(&device)?) } else { None };
        Ok(WgpuExecutable {
            device,
            programs,
            pipelines,
            arena,
            now,
            map,
            logits,
            sampling,
            sampling_row_at: None,
            sampled,
            sampled_row: None,
            staging: None,
            timer,
            info,
            vocab_size,
            last: None,
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

    /// Writes the step's inputs, angles and sizes.
    fn begin(&mut self, program: usize, input: &StepInput<'_>) {
        let graph = &self.programs[program].plan.graph;
        let place = |value: &ValueId| u64::from(self.map.places.inputs.get(value).copied().unwrap_or(0)) * 4;
        let queue = &self.device.queue;
        if let StepTokens::Host(tokens) = input.tokens {
            let at = place(&graph.inputs.tokens);
            for (i, token) in tokens.iter().enumerate() {
                queue.write_buffer(&self.arena, at + i as u64 * 4, &token.0.to_le_bytes());
            }
        }
        for (value, words) in [
            (&graph.inputs.positions, input.positions),
            (&graph.inputs.sequence, input.sequence),
            (&graph.inputs.kv_slots, input.kv_slots),
            (&graph.inputs.logits_rows, input.logits_rows),
        ] {
            if !words.is_empty() {
                queue.write_buffer(&self.arena, place(value), bytemuck::cast_slice(words));
            }
        }
        for (i, spec) in graph.rope_tables.iter().enumerate() {
            let Some(at) = self.map.places.rope.get(&RopeTableId(i as u32)) else { continue };
            self.angles.resize(input.positions.len() * spec.dims, 0.0);
            for (row, position) in self.angles.chunks_exact_mut(spec.dims).zip(input.positions) {
                spec.fill_row(*position, row);
            }
            queue.write_buffer(&self.arena, u64::from(*at) * 4, bytemuck::cast_slice(&self.angles));
        }
        let sizes = input.sizes();
        let (splits, positions) = self.splits(program, sizes);
        let now =
            [sizes.tokens as u32, sizes.logits_rows as u32, sizes.cached as u32, splits, positions, 0, 0, 0];
        debug_assert_eq!(size_of_val(&now) as u64, STEP_BYTES);
        queue.write_buffer(&self.now, 0, bytemuck::cast_slice(&now));
    }

    /// Encodes dispatches into a pass.
    fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        program: usize,
        dispatches: &[Ready],
        groups: &HashMap<StateBinding, wgpu::BindGroup>,
        sizes: StepSizes,
    ) {
        let (splits, _) = self.splits(program, sizes);
        for ready in dispatches {
            let [x, y, z] = ready.grid.resolve(sizes, splits);
            if x * y * z == 0 || (ready.when_split && splits == 1) {
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
        let (Some((program, sizes)), Some(logits)) = (self.last, self.logits) else {
            return Err(missing(0));
        };
        if row >= sizes.logits_rows {
            return Err(missing(sizes.logits_rows));
        }
        let slot = self.programs[program].plan.memory.slot(logits.value).ok_or_else(|| missing(0))?;
        let at = self.map.places.values_at as usize + slot.offset_bytes / 4 + row * logits.vocabulary;
        Ok((at as u32, logits.vocabulary))
    }

    /// Points the sampler at a row of the last step's logits and encodes it, with the copy of its result.
    fn sample(&mut self, encoder: &mut wgpu::CommandEncoder, row: usize) -> Result<bool, BackendError> {
        let Ok((at, vocabulary)) = self.row_at(row) else { return Ok(false) };
        let Some(sampling) = &self.sampling else { return Ok(false) };
        if self.sampling_row_at != Some(at) {
            self.device.queue.write_buffer(&sampling.params, sampling.x_bytes, &at.to_le_bytes());
            self.sampling_row_at = Some(at);
        }
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            let sizes = StepSizes { tokens: 1, logits_rows: 1, cached: 1 };
            self.encode(&mut pass, 0, &sampling.dispatches, &HashMap::new(), sizes);
        }
        let result = u64::from(self.map.sample_at) + sample::result_at(vocabulary, 1) as u64;
        encoder.copy_buffer_to_buffer(&self.arena, result * 4, &self.sampled, 0, SAMPLED_BYTES);
        self.sampled_row = Some(row);
        Ok(true)
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
        self.device.queue.submit([encoder.finish()]);
        map_words(&self.device, staging, words)
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
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
            let mut pass = encoder.begin_compute_pass(&descriptor);
            self.encode(&mut pass, program, &self.programs[program].launches[launch], &state.groups, sizes);
        }
        if let Some(timer) = &self.timer {
            encoder.resolve_query_set(&timer.queries, 0..2, &timer.resolved, 0);
        }
        self.device.queue.submit([encoder.finish()]);
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

/// Bytes that the sampler gives: id, bits of its logit, NaN count, padded.
const SAMPLED_BYTES: u64 = 12;

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

/// Waits for a buffer and copies its first words.
fn map_words(device: &Device, buffer: &wgpu::Buffer, words: usize) -> Result<Vec<u32>, BackendError> {
    let failed =
        |detail: String| BackendError::Device { backend: NAME, device: device.info.name.clone(), detail };
    let (sender, receiver) = std::sync::mpsc::channel();
    buffer.map_async(wgpu::MapMode::Read, 0..words as u64 * 4, move |result| {
        // The receiver waits below; it is only gone if waiting failed, and then nobody needs the result.
        sender.send(result).unwrap_or_default();
    });
    device.wait()?;
    let mapped = receiver.try_recv().map_err(|e| failed(format!("reading back: {e}")))?;
    mapped.map_err(|e| failed(format!("reading back: {e}")))?;
    let result = {
        let view = buffer.get_mapped_range(0..words as u64 * 4).map_err(|e| failed(e.to_string()))?;
        let mut out = vec![0u32; words];
        bytemuck::cast_slice_mut::<u32, u8>(&mut out).copy_from_slice(&view);
        out
    };
    buffer.unmap();
    Ok(result)
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
        input.check(max, self.vocab_size)?;
        let state = state.as_any_mut().downcast_mut::<WgpuState>();
        let Some(state) = state.filter(|s| Arc::ptr_eq(&s.device, &self.device)) else {
            return Err(BackendError::Input("the state belongs to another executable".into()));
        };
        self.device.check()?;
        let mut encoder = self.encoder();
        if let StepTokens::Argmax { row } = input.tokens
            && self.sampled_row != Some(row)
            && !self.sample(&mut encoder, row)?
        {
            return Err(BackendError::Input(format!(
                "row {row}: there are no logits to choose a token from"
            )));
        }
        self.begin(program, input);
        let sizes = input.sizes();
        self.sampled_row = None;
        self.last = None;
        match observer {
            Some(observer) => {
                self.device.queue.submit([encoder.finish()]);
                self.observed(program, state, input, observer)?;
                self.last = Some((program, sizes));
            }
            None => {
                {
                    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                    for launch in &self.programs[program].launches {
                        self.encode(&mut pass, program, launch, &state.groups, sizes);
                    }
                }
                self.last = Some((program, sizes));
                if sizes.logits_rows == 1 {
                    self.sample(&mut encoder, 0)?;
                }
                self.device.queue.submit([encoder.finish()]);
                if sizes.tokens > 1 && sizes.logits_rows > 0 {
                    // The last of a prompt: its time is the prompt's, not the first token's.
                    self.device.wait()?;
                }
                self.device.check()?;
            }
        }
        Ok(())
    }

    fn logits(&mut self, row: usize, out: &mut Vec<f32>) -> Result<(), BackendError> {
        let (at, vocabulary) = self.row_at(row)?;
        let words = self.read_words(None, u64::from(at), vocabulary)?;
        out.clear();
        out.extend(words.into_iter().map(f32::from_bits));
        Ok(())
    }

    fn argmax(&mut self, row: usize) -> Result<TokenId, BackendError> {
        self.row_at(row)?;
        if self.sampled_row != Some(row) {
            let mut encoder = self.encoder();
            self.sample(&mut encoder, row)?;
            self.device.queue.submit([encoder.finish()]);
        }
        let words = map_words(&self.device, &self.sampled, SAMPLED_BYTES as usize / 4)?;
        if words[2] == 0 {
            return Ok(TokenId(words[0]));
        }
        // The NaN's id, for the error.
        let mut logits = Vec::new();
        self.logits(row, &mut logits)?;
        argmax(&logits)
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
