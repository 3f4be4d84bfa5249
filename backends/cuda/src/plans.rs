//! What a graph becomes under some options, before anything lies on the device: plans for one token and for many, and the
//! memory that they take.

use super::driver::Driver;
use super::ops::{self, ScratchSizes};
use super::{Cuda, NAME, device, groups};
use moe_run_graph::ir::{Graph, StepSizes};
use moe_run_graph::passes::{Plan, PlanOptions, none_alone, plan};
use moe_run_graph::quant::ActProfile;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    CompileOptions, ExecutableInfo, MICRO_BATCH, MemoryNeed, PoolSize, check_kv_rows,
};

/// The step's inputs: tokens, positions, sequence, slots, rows.
pub(super) const INPUTS: usize = 5;

/// Refuses what no device could run.
pub(super) fn check(graph: &Graph, options: &CompileOptions) -> Result<(), BackendError> {
    options.check(&Cuda)?;
    for node in &graph.nodes {
        ops::supports(graph, node)?;
    }
    check_kv_rows(NAME, graph, options.kv_type)
}

/// Words from one step input of a plan to the next.
pub(super) fn input_stride(plan: &Plan) -> usize {
    plan.max_sizes.tokens.max(plan.max_sizes.logits_rows).next_multiple_of(64)
}

/// The plans of a graph, and what they need beside weights.
pub(super) struct Plans {
    pub decode: Plan,
    pub prefill: Plan,
    pub profile: ActProfile,
    pub info: ExecutableInfo,
    pub scratch: ScratchSizes,
    pub arena_bytes: u64,
    /// Step and boundary inputs.
    input_bytes: u64,
    /// All that grows with the context: RoPE's angles are in it.
    cache_bytes: u64,
}

impl Plans {
    /// Plans a graph that [`check`] has let pass.
    pub fn new(
        driver: &dyn Driver,
        graph: &Graph,
        weight_bytes: u64,
        options: &CompileOptions,
    ) -> Result<Plans, BackendError> {
        let profile = super::profile(options);
        let micro_batch = options.micro_batch.unwrap_or(MICRO_BATCH).max(1);
        let plan_for = |tokens: usize| {
            let (logits_rows, cached) = (options.max_logits_rows, options.ctx_size);
            let max_sizes = StepSizes { tokens, logits_rows, cached };
            let patterns = groups::patterns(tokens, profile, options.kv_type);
            plan(
                graph,
                &PlanOptions { taps: &options.taps, patterns: &patterns, alone: &none_alone, max_sizes },
            )
        };
        let (decode, prefill) = (plan_for(1)?, plan_for(micro_batch)?);
        for plan in [&decode, &prefill] {
            if let Some(slot) = plan.memory.slots.iter().find(|s| s.size_bytes / 4 > i32::MAX as usize) {
                return Err(BackendError::Value {
                    value: slot.value.to_string(),
                    detail: format!(
                        "{} bytes; kernels count up to 2³¹ elements: lower the micro-batch",
                        slot.size_bytes
                    ),
                });
            }
        }
        let scratch = ScratchSizes::of(&prefill.graph, prefill.max_sizes, driver.info().multiprocessors);
        let step_bytes: usize = [&decode, &prefill].map(|plan| 4 * INPUTS * input_stride(plan)).iter().sum();
        let boundary = graph.boundary.iter().map(|id| graph.value(*id).shape.elems(prefill.max_sizes));
        let input_bytes = (step_bytes + 4 * boundary.sum::<usize>()) as u64;
        let rope_bytes: u64 = graph.rope_tables.iter().map(|t| (4 * options.ctx_size * t.dims) as u64).sum();
        let info = ExecutableInfo {
            backend: NAME,
            device: driver.info().name.clone(),
            activations: profile.into(),
            q8_super_block: profile.super_block(),
            kv_type: options.kv_type,
            threads: 1,
            micro_batch,
            weight_bytes,
        };
        Ok(Plans {
            arena_bytes: decode.memory.arena_bytes.max(prefill.memory.arena_bytes) as u64,
            cache_bytes: PoolSize::of_one(options.ctx_size, micro_batch)
                .bytes(graph, options.kv_type)
                .saturating_add(rope_bytes),
            input_bytes,
            decode,
            prefill,
            profile,
            info,
            scratch,
        })
    }

    /// Refuses before anything is uploaded what cannot fit; else what it will take. Weights that are loaded have their
    /// place.
    pub fn check_memory(
        &self,
        driver: &dyn Driver,
        options: &CompileOptions,
        is_loaded: bool,
    ) -> Result<MemoryNeed, BackendError> {
        let (free, all) = driver.memory().map_err(|e| device::error(&driver.info().name, e))?;
        let (weights, cache) = (self.info.weight_bytes, self.cache_bytes);
        let available = if is_loaded { free.saturating_add(weights) } else { free };
        let need = MemoryNeed {
            weight_bytes: weights,
            kv_cache_bytes: cache,
            kv_stored: options.kv_type,
            working_bytes: self.arena_bytes + self.input_bytes + self.scratch.bytes(),
            available_bytes: Some(available),
        };
        let (wanted, working) = (need.wanted_bytes(), need.working_bytes);
        if wanted <= available {
            return Ok(need);
        }
        let rest = available.saturating_sub(weights.saturating_add(working));
        let ctx_size = options.ctx_size;
        let each = (cache / ctx_size.max(1) as u64).max(1);
        let mut advice = if rest >= each {
            format!("--ctx-size {} would fit, or try --kv-type q8_0", rest / each)
        } else {
            "weights and working memory alone do not fit: try a smaller model or --backend cpu".into()
        };
        if wanted <= all {
            let held = all.saturating_sub(available);
            advice = format!(
                "of the device's {all} bytes {held} are in use, by other processes too (see nvidia-smi); {advice}"
            );
        }
        let loaded = if is_loaded { ", which are loaded," } else { "" };
        Err(BackendError::OutOfMemory {
            what: format!(
                "{}: {weights} bytes of weights{loaded} + {working} of working memory + {cache} of KV cache for \
                 {ctx_size} positions",
                driver.info().name
            ),
            wanted_bytes: wanted,
            available_bytes: available,
            advice,
        })
    }
}
