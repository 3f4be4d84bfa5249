//! Stage 5, wgpu: plans + loaded weights → programs: every dispatch with its pipeline, its parameters and its bindings.

use super::choose::Chooser;
use super::device::Device;
use super::emit::Dispatch;
use super::executable::{WgpuExecutable, WgpuRecorder};
use super::ops::{self, sample};
use super::params::pack;
use super::pipelines::Pipelines;
use super::plans::{ARENA_ADVICE, Plans, logits_of};
use super::program::{Program, Ready, STEP_BYTES, Sampling};
use super::weights::{Buffers, GraphWeights, WgpuWeights};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::CompileOptions;
use std::sync::{Arc, PoisonError};

/// Compiles a graph that reads loaded weights.
pub(super) fn compile(
    weights: &WgpuWeights,
    graph: &Graph,
    options: &CompileOptions,
) -> Result<WgpuExecutable, BackendError> {
    let GraphWeights { map: weight_map, buffers } = weights.of(graph)?;
    let device = Arc::clone(&weights.opened.device);
    let plans = Plans::new(&device, graph, &weight_map, options)?;
    plans.tell_opened(&device, graph, options, true);
    let Plans { plans, emitted, map, info, arena_words } = plans;
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
        let mut compiled = weights.opened.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        compiled.add(&device, all, options.progress.as_deref())?;
        compiled.clone()
    };

    let shared =
        Shared { device: &device, pipelines: &pipelines, weights: &buffers, arena: &arena, now: &now };
    let mut programs = Vec::with_capacity(plans.len());
    for (plan, launches) in plans.into_iter().zip(emitted) {
        let launches = shared.ready(launches)?;
        let max_splits = ops::max_splits(plan.max_sizes.tokens);
        programs.push(Program { plan: Arc::new(plan), launches, max_splits });
    }
    let chooser = match (logits, sampling) {
        (Some(logits), Some(dispatches)) => {
            Some(Chooser::new(&device, logits, shared.sampling(dispatches)?, map.sample_at)?)
        }
        _ => None,
    };
    WgpuRecorder::executable(device, programs, pipelines, arena, now, map, chooser, info)
}

/// What every dispatch's bind group is made of.
struct Shared<'a> {
    device: &'a Device,
    pipelines: &'a Pipelines,
    weights: &'a Buffers,
    arena: &'a wgpu::Buffer,
    now: &'a wgpu::Buffer,
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
            let slot = slot.get_mut(..words.len()).filter(|_| words.len() as u64 <= PARAMS_BYTES);
            let many = || self.defect(format!("{}: {} bytes of parameters", dispatch.variant, words.len()));
            slot.ok_or_else(many)?.copy_from_slice(words);
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

/// Bytes kept for the parameters of a dispatch, a multiple of 16: those of norm_qkv are the most.
const PARAMS_BYTES: u64 = 256;
