//! Stage 5, wgpu: what a graph becomes under some options, before anything lies on the device: plans for each token class
//! and their dispatches, with the places of all values in the arena.

use super::device::{Device, WgpuOptions};
use super::emit::{Dispatch, Emitter, MAX_GROUPS, Places};
use super::ops::{self, sample};
use super::shader::{Features, compose};
use super::weight_map::WeightMap;
use super::{NAME, Wgpu, groups};
use moe_run_graph::dump::KernelInfo;
use moe_run_graph::ir::{DType, Dim, Graph, Node, RopeTableId, StepSizes, ValueId};
use moe_run_graph::passes::{Launch, Plan, PlanOptions, plan};
use moe_run_graph::quant::ActProfile;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    CompileOptions, ExecutableInfo, KvType, MemoryNeed, PoolSize, WeightTable, check_kv_rows,
};
use std::collections::HashMap;

/// The largest T of a prefill step unless asked otherwise.
const MICRO_BATCH: usize = 256;

/// What makes the activations smaller.
pub(super) const ARENA_ADVICE: &str = "lower the micro-batch or --ctx-size, or ask for fewer taps";

/// A token class between decode and prefill: a few tokens, without tiles.
const FEW_TOKENS: usize = super::emit::FEW_ROWS;

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
pub(super) fn logits_of(graph: &Graph) -> Option<Logits> {
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

/// Refuses what no device could run.
pub(super) fn check(graph: &Graph, options: &CompileOptions) -> Result<(), BackendError> {
    options.check(&Wgpu::default())?;
    graph.nodes.iter().try_for_each(|node| super::supports(graph, node))?;
    check_kv_rows(NAME, graph, options.kv_type)
}

/// The plans of a graph, smallest class first.
pub(super) struct Plans {
    pub plans: Vec<Plan>,
    /// The dispatches of every launch of each plan.
    pub emitted: Vec<Vec<Vec<Dispatch>>>,
    pub map: ArenaMap,
    pub info: ExecutableInfo,
    /// Of the largest plan.
    pub arena_words: u32,
}

impl Plans {
    /// Plans a graph that [`check`] has let pass. Where nobody named the tokens of a micro-batch, it is halved until what
    /// lies in the arena, wanted taps included, fits the largest buffer that a shader can be given.
    pub fn new(
        device: &Device,
        graph: &Graph,
        weight_map: &WeightMap,
        options: &CompileOptions,
    ) -> Result<Plans, BackendError> {
        let mut micro_batch = options.micro_batch.unwrap_or(MICRO_BATCH).max(1);
        if micro_batch > MAX_GROUPS as usize {
            return Err(BackendError::Option {
                backend: NAME,
                option: "micro-batch",
                found: micro_batch.to_string(),
                wanted: format!("at most {MAX_GROUPS}, the workgroups along an axis of a dispatch"),
            });
        }
        loop {
            match Plans::of(device, graph, weight_map, options, micro_batch) {
                Err(BackendError::OutOfMemory { .. }) if options.micro_batch.is_none() && micro_batch > 1 => {
                    micro_batch /= 2;
                }
                plans => return plans,
            }
        }
    }

    /// The plans of steps of up to `micro_batch` tokens.
    fn of(
        device: &Device,
        graph: &Graph,
        weight_map: &WeightMap,
        options: &CompileOptions,
        micro_batch: usize,
    ) -> Result<Plans, BackendError> {
        let profile = super::profile(options);
        let mut classes = vec![1, FEW_TOKENS.min(micro_batch), micro_batch];
        classes.dedup();
        let mut plans = Vec::with_capacity(classes.len());
        for tokens in classes {
            let max_sizes = StepSizes {
                tokens,
                logits_rows: options.max_logits_rows.min(tokens),
                cached: options.ctx_size,
            };
            let patterns = groups::for_tokens(tokens, options.kv_type);
            // Fused launches read whole tensors.
            let alone = |node: &Node| weight_map.is_split(node);
            let options = PlanOptions { taps: &options.taps, patterns: &patterns, alone: &alone, max_sizes };
            plans.push(plan(graph, &options)?);
        }
        let (map, values_at) = arena_map(
            graph,
            plans.last().map_or(StepSizes { tokens: 1, logits_rows: 1, cached: 1 }, |p| p.max_sizes),
        );

        let states = PoolSize::of_one(options.ctx_size, micro_batch);
        let mut emitted = Vec::with_capacity(plans.len());
        let mut arena_words = values_at;
        for plan in &plans {
            let fits = |size_bytes| device.fits("activations", size_bytes, ARENA_ADVICE);
            // Before places in it are numbered with 32 bits.
            fits(u64::from(values_at) * 4 + plan.memory.arena_bytes as u64)?;
            let cache = (options.kv_type, states);
            let (launches, words) = emit_all(plan, &map.places, weight_map, profile, cache, device.features)?;
            fits(u64::from(words) * 4)?;
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
        Ok(Plans { plans, emitted, map, info, arena_words })
    }

    /// Says what the graph will run on, and what it takes of the device's memory.
    pub fn tell_opened(
        &self,
        device: &Device,
        graph: &Graph,
        options: &CompileOptions,
        are_weights_loaded: bool,
    ) {
        let weight_bytes = self.info.weight_bytes;
        let loaded_bytes = if are_weights_loaded { weight_bytes } else { 0 };
        let memory = MemoryNeed {
            weight_bytes,
            kv_cache_bytes: PoolSize::of_one(options.ctx_size, self.info.micro_batch)
                .bytes(graph, options.kv_type),
            kv_stored: options.kv_type,
            working_bytes: u64::from(self.arena_words) * 4,
            available_bytes: device.available_bytes().map(|free| free.saturating_add(loaded_bytes)),
        };
        options.tell_opened(&self.info, format!("{:?}", device.info.backend), graph, memory);
    }
}

/// The dispatches of every launch of a plan, and the words of arena that they need.
fn emit_all(
    plan: &Plan,
    places: &Places,
    weights: &WeightMap,
    profile: ActProfile,
    cache: (KvType, PoolSize),
    features: Features,
) -> Result<(Vec<Vec<Dispatch>>, u32), BackendError> {
    let places = Places {
        inputs: places.inputs.clone(),
        rope: places.rope.clone(),
        values_at: places.values_at,
        scratch_at: places.values_at + (plan.memory.arena_bytes / 4) as u32,
    };
    let mut emitter = Emitter::new(plan, &places, weights, profile, cache, features);
    let mut all = Vec::with_capacity(plan.launches.len());
    for launch in &plan.launches {
        emitter.begin_launch();
        groups::emit(&mut emitter, launch)?;
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
    let weights = WeightMap::new(&WeightTable::new(&plan.graph), u64::MAX).ok()?;
    let (map, _) = arena_map(&plan.graph, plan.max_sizes);
    let features = WgpuOptions::default().allowed;
    let cache = (kv_type, PoolSize::whole(plan.max_sizes.cached));
    let mut emitter = Emitter::new(plan, &map.places, &weights, profile, cache, features);
    groups::emit(&mut emitter, launch).ok()?;
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
