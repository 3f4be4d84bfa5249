//! The CPU backend: all threads on every launch, quantized weights unpacked inside the products, flash attention.
//!
//! Input: a graph, its weights, options. Output: an [`Executable`] whose steps allocate nothing and give the same bits
//! with any number of threads and any set of taps. Weights stay where they are mapped: nothing is repacked at load,
//! since a core unpacks panels three times as fast as it gets their bytes from memory.
//! `kernels` is the arithmetic, `pool` the threads, `patterns` and `compile` turn a plan into `ops`.

mod compile;
mod executable;
pub mod kernels;
mod memory;
mod ops;
mod patterns;
pub mod pool;
mod state;
mod supports;
mod topology;

use kernels::Kernels;
use moe_run_graph::ir::{Graph, LaunchPattern, Node, StepSizes};
use moe_run_graph::passes::{PlanOptions, none_alone, plan};
use moe_run_graph::quant::{ActBlock, ActProfile};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    Activations, Backend, CompileOptions, DeviceInfo, DeviceKind, Executable, ExecutableInfo, MemoryNeed,
    WeightSource, check_weights, mapped_bytes,
};
use moe_run_runtime::host_memory::{check_kv_cache, host_memory};
use pool::Pool;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// The CPU backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu;

/// Its name.
pub const NAME: &str = "cpu";

/// The largest T of a step unless asked otherwise: enough to meet every expert's weights with some tiles of tokens.
const MICRO_BATCH: usize = 512;

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        Ok(vec![device()])
    }

    fn q8_super_blocks(&self) -> &'static [ActBlock] {
        &[ActBlock::X256, ActBlock::X32]
    }

    fn has_reference_bits(&self) -> bool {
        true
    }

    fn patterns(&self, tokens: usize, _options: &CompileOptions) -> Vec<LaunchPattern> {
        patterns::patterns(tokens)
    }

    fn profile(&self, options: &CompileOptions) -> ActProfile {
        options.profile(Activations::Q8, ActBlock::X256)
    }

    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), BackendError> {
        supports::supports(graph, node)
    }

    fn compile(
        &self,
        graph: &Graph,
        weights: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executable>, BackendError> {
        let device = check(graph, weights.as_ref(), options)?;
        let threads = threads(options.threads)?;
        let pool = Pool::new(threads).map_err(|e| BackendError::Device {
            backend: NAME,
            device: device.name.clone(),
            detail: format!("cannot start {threads} threads: {e}; try a smaller --threads"),
        })?;
        compiled(device, pool, graph, weights, options)
    }
}

/// As [`Backend::compile`], on threads of the caller's, which may be more than there are processors: `options.threads` does
/// not count.
///
/// # Errors
/// As [`Backend::compile`].
pub fn compile_on(
    pool: Pool,
    graph: &Graph,
    weights: Arc<dyn WeightSource>,
    options: &CompileOptions,
) -> Result<Box<dyn Executable>, BackendError> {
    let device = check(graph, weights.as_ref(), options)?;
    compiled(device, pool, graph, weights, options)
}

/// What is refused before anything is started; the device.
fn check(
    graph: &Graph,
    weights: &dyn WeightSource,
    options: &CompileOptions,
) -> Result<DeviceInfo, BackendError> {
    options.check(&Cpu)?;
    graph.nodes.iter().try_for_each(|node| supports::supports(graph, node))?;
    supports::check_kv_heads(graph, options.kv_type)?;
    check_weights(graph, weights)?;
    let device = device();
    options.check_only_device(NAME, &device.name)?;
    check_kv_cache(NAME, graph, options.kv_type, options.ctx_size)?;
    Ok(device)
}

/// Compiles what has been checked.
fn compiled(
    device: DeviceInfo,
    pool: Pool,
    graph: &Graph,
    weights: Arc<dyn WeightSource>,
    options: &CompileOptions,
) -> Result<Box<dyn Executable>, BackendError> {
    let profile = Cpu.profile(options);
    let micro_batch = options.micro_batch.unwrap_or(MICRO_BATCH).max(1);
    let program = |tokens: usize| {
        let max_sizes = StepSizes { tokens, logits_rows: options.max_logits_rows, cached: options.ctx_size };
        let patterns = patterns::patterns(tokens);
        let plan = plan(
            graph,
            &PlanOptions { taps: &options.taps, patterns: &patterns, alone: &none_alone, max_sizes },
        )?;
        compile::compile(plan, weights.as_ref(), profile)
    };
    let (one, many) = (program(1)?, program(micro_batch)?);
    let info = ExecutableInfo {
        backend: NAME,
        device: device.name,
        activations: profile.into(),
        q8_super_block: profile.super_block(),
        kv_type: options.kv_type,
        threads: pool.threads(),
        micro_batch,
        weight_bytes: 0,
    };
    let kernels = Kernels::detect();
    let rope_elems: usize = graph.rope_tables.iter().map(|t| t.dims).sum();
    let memory = MemoryNeed {
        weight_bytes: mapped_bytes(graph, weights.as_ref()),
        kv_cache_bytes: options.kv_type.cache_bytes(graph, options.ctx_size),
        kv_stored: options.kv_type,
        working_bytes: 4 * (one.arena_words.max(many.arena_words) as u64)
            + 4 * (rope_elems as u64).saturating_mul(options.ctx_size as u64),
        available_bytes: host_memory().map(|m| m.available_bytes),
    };
    options.tell_opened(&info, kernels.isa().name(), graph, memory);
    Ok(Box::new(executable::CpuExecutable::new(one, many, info, kernels, pool, weights)?))
}

/// The number of threads: what was asked for, at most one for each processor that the process may use, else the physical
/// cores. More would take turns on the processors and wait for each other at every barrier.
fn threads(wanted: Option<usize>) -> Result<NonZeroUsize, BackendError> {
    match wanted.map(NonZeroUsize::new) {
        Some(Some(n)) => Ok(n.min(topology::processors())),
        Some(None) => Err(BackendError::Option {
            backend: NAME,
            option: "--threads",
            found: "0".into(),
            wanted: "1 or more".into(),
        }),
        None => Ok(topology::physical_cores()),
    }
}

fn device() -> DeviceInfo {
    let isa = Kernels::detect().isa();
    DeviceInfo {
        backend: NAME,
        index: 0,
        name: topology::processor_name(),
        kind: DeviceKind::Cpu,
        details: vec![
            ("instruction set".into(), isa.name().into()),
            ("physical cores".into(), topology::physical_cores().to_string()),
        ],
        memory_bytes: host_memory().map(|m| m.total_bytes),
    }
}
