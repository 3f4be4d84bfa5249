//! Stage 5, wgpu: Plan → programs: every dispatch with its pipeline, its parameters and its bindings.

use super::buffers::{WeightMap, Weights, upload};
use super::choose::Chooser;
use super::device::{Device, WgpuOptions};
use super::emit::{Dispatch, Emitter, Grid, MAX_GROUPS, Places, StateBinding};
use super::executable::WgpuExecutable;
use super::ops::{self, sample};
use super::params::pack;
use super::pipelines::Pipelines;
use super::shader::{Features, compose};
use super::{NAME, launches};
use moe_run_graph::dump::KernelInfo;
use moe_run_graph::ir::{DType, Dim, Graph, Node, RopeTableId, StepSizes, ValueId};
use moe_run_graph::passes::{Launch, Plan, PlanOptions, plan};
use moe_run_graph::quant::ActProfile;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    CompileOptions, ExecutableInfo, KvType, MemoryNeed, WeightSource, check_kv_rows, check_weights,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The largest T of a prefill step unless asked otherwise.
const MICRO_BATCH: usize = 256;

/// What makes the activations smaller.
const ARENA_ADVICE: &str = "lower the micro-batch or --ctx-size, or ask for fewer taps";

/// A token class between decode and prefill: a few tokens, without tiles.
const FEW_TOKENS: usize = super::emit::FEW_ROWS;

/// A dispatch that is ready to be encoded.
pub(super) struct Ready {
    pub pipeline: wgpu::ComputePipeline,
    pub bindings: wgpu::BindGroup,
    pub state: StateBinding,
    pub grid: Grid,
    pub when_split: bool,
}

/// A plan for one token class, compiled.
pub(super) struct Program {
    pub plan: Plan,
    /// Dispatches of each launch.
    pub launches: Vec<Vec<Ready>>,
    pub max_splits: usize,
}

/// The step's inputs and everything else that lies in the arena, in words.
pub(super) struct ArenaMap {
    pub places: Places,
    /// Scratch of the device's sampling.
    pub sample_at: u32,
}

/// Logits that can be sampled on the device.
#[derive(Clone, Copy)]
pub(super) struct Logits {
    pub value: ValueId,
    /// Of a row.
    pub vocabulary: usize,
    /// The first so many of a row may be chosen.
    pub choosable: usize,
}

/// The graph's first output if it is rows of logits.
fn logits_of(graph: &Graph) -> Option<Logits> {
    let value = graph.value(*graph.outputs.first()?);
    match value.shape.0[..] {
        [Dim::LogitsRows, Dim::Fixed(vocabulary)]
            if value.dtype == DType::F32 && vocabulary <= sample::MAX_ELEMENTS =>
        {
            Some(Logits { value: value.id, vocabulary, choosable: graph.choosable(vocabulary) })
        }
        _ => None,
    }
}

/// An open device with the pipelines that have been compiled for it.
#[derive(Clone)]
pub struct Opened {
    pub(super) device: Arc<Device>,
    pub(super) pipelines: Arc<Mutex<Pipelines>>,
}

impl Opened {
    pub(super) fn new(device: Device) -> Opened {
        Opened { device: Arc::new(device), pipelines: Arc::default() }
    }
}

/// Compiles a graph for the device that `open` gives.
pub(super) fn compile(
    open: &dyn Fn() -> Result<Opened, BackendError>,
    graph: &Graph,
    weights: &dyn WeightSource,
    options: &CompileOptions,
) -> Result<WgpuExecutable, BackendError> {
    for node in &graph.nodes {
        super::supports(graph, node)?;
    }
    let profile = super::profile(options);
    check_kv_rows(NAME, graph, options.kv_type)?;
    check_weights(graph, weights)?;
    let Opened { device, pipelines } = open()?;
    let progress = options.progress.as_deref();
    let weight_map = WeightMap::new(graph, device.max_tensor_bytes)?;

    let micro_batch = options.micro_batch.unwrap_or(MICRO_BATCH).max(1);
    if micro_batch > MAX_GROUPS as usize {
        return Err(BackendError::Option {
            backend: NAME,
            option: "micro-batch",
            found: micro_batch.to_string(),
            wanted: format!("at most {MAX_GROUPS}, the workgroups along an axis of a dispatch"),
        });
    }
    let mut classes = vec![1, FEW_TOKENS.min(micro_batch), micro_batch];
    classes.dedup();
    let mut plans = Vec::with_capacity(classes.len());
    for tokens in classes {
        let max_sizes =
            StepSizes { tokens, logits_rows: options.max_logits_rows.min(tokens), cached: options.ctx_size };
        let patterns = launches::for_tokens(tokens);
        // Fused launches read whole tensors.
        let alone = |node: &Node| weight_map.is_split(node);
        let options = PlanOptions { taps: &options.taps, patterns: &patterns, alone: &alone, max_sizes };
        plans.push(plan(graph, &options)?);
    }
    let (map, values_at) = arena_map(
        graph,
        plans.last().map_or(StepSizes { tokens: 1, logits_rows: 1, cached: 1 }, |p| p.max_sizes),
    );

    let mut emitted = Vec::with_capacity(plans.len());
    let mut arena_words = values_at;
    for plan in &plans {
        // Before places in it are numbered with 32 bits.
        device.fits(
            "activations",
            u64::from(values_at) * 4 + plan.memory.arena_bytes as u64,
            ARENA_ADVICE,
        )?;
        let (launches, words) =
            emit_all(plan, &map.places, &weight_map, profile, options.kv_type, device.features)?;
        arena_words = arena_words.max(words);
        emitted.push(launches);
    }

    let info = ExecutableInfo {
        backend: NAME,
        device: device.name(),
        activations: profile.into(),
        q8_super_block: profile.super_block(),
        kv_type: options.kv_type,
        threads: 1,
        micro_batch,
        weight_bytes: weight_map.size_bytes(),
    };
    let memory = MemoryNeed {
        weight_bytes: weight_map.size_bytes(),
        kv_cache_bytes: options.kv_type.cache_bytes(graph, options.ctx_size),
        kv_stored: options.kv_type,
        working_bytes: u64::from(arena_words) * 4,
        available_bytes: device.available_bytes(),
    };
    options.tell_opened(&info, format!("{:?}", device.info.backend), graph, memory);
    let uploaded = upload(&device, graph, &weight_map, weights, progress)?;
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
    let arena = device.buffer("activations", u64::from(arena_words) * 4, usage, ARENA_ADVICE)?;
    let now = device.buffer(
        "the step's sizes",
        STEP_BYTES,
        wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        "use another device",
    )?;

    let logits = logits_of(graph);
    let sampling = logits.map(|l| {
        let next_token = map.places.inputs.get(&graph.inputs.tokens).copied();
        sample::dispatches(device.features, l.choosable, map.sample_at, next_token)
    });
    let all = emitted.iter().flatten().flatten().chain(sampling.iter().flatten());
    let pipelines = {
        let mut compiled = pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        compiled.add(&device, all, progress)?;
        compiled.clone()
    };

    let shared =
        Shared { device: &device, pipelines: &pipelines, weights: &uploaded, arena: &arena, now: &now };
    let mut programs = Vec::with_capacity(plans.len());
    for (plan, launches) in plans.into_iter().zip(emitted) {
        let launches = shared.ready(launches)?;
        let max_splits = ops::max_splits(plan.max_sizes.tokens);
        programs.push(Program { plan, launches, max_splits });
    }
    let chooser = match (logits, sampling) {
        (Some(logits), Some(dispatches)) => {
            Some(Chooser::new(&device, logits, shared.sampling(dispatches)?, map.sample_at)?)
        }
        _ => None,
    };
    let vocab_size = graph.vocab_size();
    WgpuExecutable::new(device, programs, pipelines, arena, now, map, chooser, info, vocab_size)
}

/// The dispatches of every launch of a plan, and the words of arena that they need.
fn emit_all(
    plan: &Plan,
    places: &Places,
    weights: &WeightMap,
    profile: ActProfile,
    kv_type: KvType,
    features: Features,
) -> Result<(Vec<Vec<Dispatch>>, u32), BackendError> {
    let places = Places {
        inputs: places.inputs.clone(),
        rope: places.rope.clone(),
        values_at: places.values_at,
        scratch_at: places.values_at + (plan.memory.arena_bytes / 4) as u32,
    };
    let mut emitter = Emitter::new(plan, &places, weights, profile, kv_type, features);
    let mut all = Vec::with_capacity(plan.launches.len());
    for launch in &plan.launches {
        emitter.begin_launch();
        launches::emit(&mut emitter, launch)?;
        all.push(std::mem::take(&mut emitter.dispatches));
    }
    Ok((all, places.scratch_at + emitter.max_scratch_words))
}

/// The shaders of one launch of a plan, on a device with every optional feature and room for whole tensors.
pub(super) fn kernel(
    plan: &Plan,
    launch: &Launch,
    profile: ActProfile,
    kv_type: KvType,
) -> Option<KernelInfo> {
    let weights = WeightMap::new(&plan.graph, u64::MAX).ok()?;
    let (map, _) = arena_map(&plan.graph, plan.max_sizes);
    let features = WgpuOptions::default().allowed;
    let mut emitter = Emitter::new(plan, &map.places, &weights, profile, kv_type, features);
    launches::emit(&mut emitter, launch).ok()?;
    let dispatches = emitter.dispatches;
    let splits = ops::max_splits(plan.max_sizes.tokens) as u32;
    let main = dispatches.last().filter(|d| !d.when_split).or(dispatches.first())?;
    let source: Option<Vec<String>> = dispatches.iter().map(|d| compose(&d.variant).ok()).collect();
    let names: Vec<String> = dispatches.iter().map(|d| d.variant.to_string()).collect();
    let lanes = main.variant.sizes.get("LANES").copied().unwrap_or(TILE_LANES);
    Some(KernelInfo {
        name: names.join(" + "),
        grid: Some(main.grid.resolve(plan.max_sizes, splits)),
        workgroup: Some([lanes, 1, 1]),
        dispatches: Some(names.len()),
        source: source.map(|s| s.join("\n")),
    })
}

/// Lanes of a workgroup that multiplies tiles.
const TILE_LANES: u32 = 256;

/// Bytes of `struct Step` in common/arena.wgsl.
pub(super) const STEP_BYTES: u64 = 32;

/// Lays out inputs, RoPE angles and sampling scratch; gives the first word behind them.
fn arena_map(graph: &Graph, max_sizes: StepSizes) -> (ArenaMap, u32) {
    let mut at = 0u32;
    let mut take = |words: usize| {
        let begin = at;
        at += words.next_multiple_of(64) as u32;
        begin
    };
    let inputs = &graph.inputs;
    let step = [inputs.tokens, inputs.positions, inputs.sequence, inputs.kv_slots, inputs.logits_rows];
    let mut places = HashMap::new();
    // What every step writes lies together.
    for value in &step {
        places.insert(*value, take(graph.value(*value).shape.elems(max_sizes)));
    }
    let tables = graph.rope_tables.iter().enumerate();
    let rope = tables.map(|(i, spec)| (RopeTableId(i as u32), take(max_sizes.tokens * spec.dims))).collect();
    for value in &graph.boundary {
        places.insert(*value, take(graph.value(*value).shape.elems(max_sizes)));
    }
    let sample_at = take(logits_of(graph).map_or(0, |l| sample::scratch_words(l.vocabulary)));
    let places = Places { inputs: places, rope, values_at: at, scratch_at: at };
    (ArenaMap { places, sample_at }, at)
}

/// What every dispatch's bind group is made of.
struct Shared<'a> {
    device: &'a Device,
    pipelines: &'a Pipelines,
    weights: &'a Weights,
    arena: &'a wgpu::Buffer,
    now: &'a wgpu::Buffer,
}

/// The two dispatches of the sampler and their parameters, which say what it chooses from.
pub(super) struct Sampling {
    pub dispatches: Vec<Ready>,
    pub params: wgpu::Buffer,
    /// Where each dispatch's parameters begin in it, with [`sample::Wanted`].
    pub params_at: [u64; 2],
}

impl Shared<'_> {
    fn ready(&self, launches: Vec<Vec<Dispatch>>) -> Result<Vec<Vec<Ready>>, BackendError> {
        let dispatches: Vec<&Dispatch> = launches.iter().flatten().collect();
        let params = self.params(&dispatches)?;
        let mut ready = self.bind(&dispatches, &params)?.into_iter();
        Ok(launches.iter().map(|l| ready.by_ref().take(l.len()).collect()).collect())
    }

    fn sampling(&self, dispatches: [Dispatch; 2]) -> Result<Sampling, BackendError> {
        let dispatches: Vec<&Dispatch> = dispatches.iter().collect();
        let params = self.params(&dispatches)?;
        let params_at = [0, self.stride()];
        Ok(Sampling { dispatches: self.bind(&dispatches, &params)?, params, params_at })
    }

    /// One uniform buffer with the parameters of all dispatches, each at the alignment that bindings need.
    fn params(&self, dispatches: &[&Dispatch]) -> Result<wgpu::Buffer, BackendError> {
        let stride = self.stride();
        let mut bytes = vec![0u8; stride as usize * dispatches.len()];
        for (slot, dispatch) in bytes.chunks_exact_mut(stride as usize).zip(dispatches) {
            let text = self.pipelines.get(&dispatch.variant).map_or("", |p| &*p.text);
            let words =
                pack(&dispatch.variant, text, &dispatch.params).map_err(|e| self.defect(e.to_string()))?;
            let words: &[u8] = bytemuck::cast_slice(&words);
            slot[..words.len()].copy_from_slice(words);
        }
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let buffer = self.device.buffer("parameters", bytes.len() as u64, usage, "use another device")?;
        self.device.queue.write_buffer(&buffer, 0, &bytes);
        Ok(buffer)
    }

    fn stride(&self) -> u64 {
        u64::from(self.device.limits.min_uniform_buffer_offset_alignment).max(PARAMS_BYTES)
    }

    fn bind(&self, dispatches: &[&Dispatch], params: &wgpu::Buffer) -> Result<Vec<Ready>, BackendError> {
        let mut ready = Vec::with_capacity(dispatches.len());
        for (i, dispatch) in dispatches.iter().enumerate() {
            let pipeline = self.pipelines.get(&dispatch.variant);
            let layout = self.pipelines.weights_layout(dispatch.weights.len());
            let (Some(pipeline), Some(layout)) = (pipeline, layout) else {
                return Err(self.defect(format!("{} was not compiled", dispatch.variant)));
            };
            let at = wgpu::BufferBinding {
                buffer: params,
                offset: i as u64 * self.stride(),
                size: std::num::NonZeroU64::new(PARAMS_BYTES),
            };
            let mut entries = vec![
                wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(at) },
                wgpu::BindGroupEntry { binding: 1, resource: self.now.as_entire_binding() },
                wgpu::BindGroupEntry { binding: 2, resource: self.arena.as_entire_binding() },
                wgpu::BindGroupEntry { binding: 3, resource: self.weights.smalls.as_entire_binding() },
            ];
            for (j, (tensor, part)) in dispatch.weights.iter().enumerate() {
                let part = self.weights.parts.get(&(*tensor, *part));
                let part = part.ok_or_else(|| self.defect(format!("no part of tensor {tensor}")))?;
                entries
                    .push(wgpu::BindGroupEntry { binding: 4 + j as u32, resource: part.as_entire_binding() });
            }
            let bindings = self.device.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(dispatch.variant.op),
                layout,
                entries: &entries,
            });
            ready.push(Ready {
                pipeline: pipeline.pipeline.clone(),
                bindings,
                state: dispatch.state.clone(),
                grid: dispatch.grid,
                when_split: dispatch.when_split,
            });
        }
        self.device.check()?;
        Ok(ready)
    }

    fn defect(&self, detail: String) -> BackendError {
        self.device.failed(detail)
    }
}

/// Bytes kept for the parameters of a dispatch, a multiple of 16.
const PARAMS_BYTES: u64 = 128;
