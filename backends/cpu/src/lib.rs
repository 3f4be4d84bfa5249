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
mod share;
mod state;
mod supports;
mod tiles;
mod topology;

use compile::Program;
use kernels::Kernels;
use moe_run_graph::ir::{Graph, LaunchPattern, Node, StepSizes};
use moe_run_graph::passes::{PlanOptions, none_alone, plan};
use moe_run_graph::quant::{ActBlock, ActProfile};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    Activations, Backend, CompileOptions, DeviceInfo, DeviceKind, Executable, ExecutableInfo, Loaded,
    MICRO_BATCH, MemoryNeed, PoolSize, WeightSource, WeightTable, Weights, check_weights, mapped_bytes,
};
use moe_run_runtime::host_memory::{check_kv_cache, host_memory};
use moe_run_runtime::runner::Runner;
use pool::Pool;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// The CPU backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu;

/// Its name.
pub const NAME: &str = "cpu";

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

    fn maps_weights(&self) -> bool {
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

    fn load(
        &self,
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Arc<dyn Weights>, BackendError> {
        Ok(Arc::new(CpuWeights::load(graph, source, options, threads(options.threads)?)?.0))
    }

    fn load_and_compile(
        &self,
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Loaded, BackendError> {
        let threads = threads(options.threads)?;
        let (weights, programs) = CpuWeights::load(graph, source, options, threads)?;
        let executable = weights.executable(new_pool(threads)?, programs)?;
        Ok((Arc::new(weights), executable))
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
    source: Arc<dyn WeightSource>,
    options: &CompileOptions,
) -> Result<Box<dyn Executable>, BackendError> {
    let threads = NonZeroUsize::new(pool.threads()).unwrap_or(NonZeroUsize::MIN);
    let (weights, programs) = CpuWeights::load(graph, source, options, threads)?;
    weights.executable(pool, programs)
}

/// Refuses what the launches cannot run.
fn check(graph: &Graph, options: &CompileOptions) -> Result<(), BackendError> {
    options.check(&Cpu)?;
    graph.nodes.iter().try_for_each(|node| supports::supports(graph, node))?;
    supports::check_kv_heads(graph, options.kv_type)
}

/// Weights where they are mapped.
struct CpuWeights {
    table: WeightTable,
    source: Arc<dyn WeightSource>,
}

impl CpuWeights {
    /// Refuses what cannot run, and says what would run; with what was compiled to know that.
    fn load(
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        options: &CompileOptions,
        threads: NonZeroUsize,
    ) -> Result<(CpuWeights, Programs), BackendError> {
        check(graph, options)?;
        check_weights(graph, source.as_ref())?;
        options.check_only_device(NAME, &topology::processor_name())?;
        let programs = Programs::new(graph, source.as_ref(), options, threads.get())?;
        programs.tell_opened(graph, source.as_ref(), options);
        Ok((CpuWeights { table: WeightTable::new(graph), source }, programs))
    }

    /// Runs programs of these weights on these threads.
    fn executable(&self, pool: Pool, programs: Programs) -> Result<Box<dyn Executable>, BackendError> {
        let Programs { one, many, info } = programs;
        let (kernels, source) = (Kernels::detect(), Arc::clone(&self.source));
        let recorder = executable::CpuRecorder::new(one, many, info, kernels, pool, source)?;
        let plans = recorder.plans();
        Ok(Box::new(Runner::new(recorder, plans)))
    }
}

impl Weights for CpuWeights {
    fn size_bytes(&self) -> u64 {
        0
    }

    fn compile(&self, graph: &Graph, options: &CompileOptions) -> Result<Box<dyn Executable>, BackendError> {
        let pool = new_pool(threads(options.threads)?)?;
        check(graph, options)?;
        self.table.find(graph)?;
        let programs = Programs::new(graph, self.source.as_ref(), options, pool.threads())?;
        programs.tell_opened(graph, self.source.as_ref(), options);
        self.executable(pool, programs)
    }
}

fn new_pool(threads: NonZeroUsize) -> Result<Pool, BackendError> {
    Pool::new(threads).map_err(|e| BackendError::Device {
        backend: NAME,
        device: topology::processor_name(),
        detail: format!("cannot start {threads} threads: {e}; try a smaller --threads"),
    })
}

/// A graph compiled for one token and for many.
struct Programs {
    one: Program,
    many: Program,
    info: ExecutableInfo,
}

impl Programs {
    /// Compiles a graph whose weights have been checked, once its cache can be held.
    fn new(
        graph: &Graph,
        source: &dyn WeightSource,
        options: &CompileOptions,
        threads: usize,
    ) -> Result<Programs, BackendError> {
        let micro_batch = options.micro_batch.unwrap_or(MICRO_BATCH).max(1);
        check_kv_cache(NAME, graph, options.kv_type, PoolSize::of_one(options.ctx_size, micro_batch))?;
        let profile = Cpu.profile(options);
        let program = |tokens: usize| {
            let max_sizes =
                StepSizes { tokens, logits_rows: options.max_logits_rows, cached: options.ctx_size };
            let patterns = patterns::patterns(tokens);
            let plan = plan(
                graph,
                &PlanOptions { taps: &options.taps, patterns: &patterns, alone: &none_alone, max_sizes },
            )?;
            compile::compile(plan, source, profile)
        };
        let info = ExecutableInfo {
            backend: NAME,
            device: topology::processor_name(),
            activations: profile.into(),
            q8_super_block: profile.super_block(),
            kv_type: options.kv_type,
            threads,
            micro_batch,
            weight_bytes: 0,
        };
        Ok(Programs { one: program(1)?, many: program(micro_batch)?, info })
    }

    /// Says what will run, and what it takes of the host's memory.
    fn tell_opened(&self, graph: &Graph, source: &dyn WeightSource, options: &CompileOptions) {
        let rope_elems: usize = graph.rope_tables.iter().map(|t| t.dims).sum();
        let states = PoolSize::of_one(options.ctx_size, self.info.micro_batch);
        let memory = MemoryNeed {
            weight_bytes: mapped_bytes(graph, source),
            kv_cache_bytes: states.bytes(graph, options.kv_type),
            kv_stored: options.kv_type,
            working_bytes: 4 * (self.one.arena_words.max(self.many.arena_words) as u64)
                + 4 * (rope_elems as u64).saturating_mul(options.ctx_size as u64),
            available_bytes: host_memory().map(|m| m.available_bytes),
        };
        options.tell_opened(&self.info, Kernels::detect().isa().name(), graph, memory);
    }
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
