//! What the steps of a plan launch, without running it: the launches are emitted as for a step, over memory that is not there.
//!
//! Input: a plan and the properties of a device. Output: each launch of the plan with its kernels, their grids and
//! parameters. Deliberately absent: what is launched beside a plan, but for the choice from its logits.

use super::choices;
use super::device;
use super::driver::{DeviceBuffer, Driver, DriverInfo, KernelLaunch, dry};
use super::ops::{Emit, Prepared, Scratch, ScratchSizes};
use super::plans::{INPUTS, Plans, input_stride};
use super::state::CudaState;
use super::values::Values;
use super::weights::GraphWeights;
use moe_run_graph::ir::StepSizes;
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::ActProfile;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{KvType, PoolSize};
use std::sync::Arc;

/// Under what a plan is run.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    pub profile: ActProfile,
    pub kv_type: KvType,
}

/// The launches of a step of these sizes on a device, in the plan's order.
pub(super) fn launches<'p>(
    plan: &'p Plan,
    terms: Terms,
    info: &DriverInfo,
    sizes: StepSizes,
) -> Result<Vec<(&'p Launch, Vec<KernelLaunch>)>, BackendError> {
    let driver: Arc<dyn Driver> = dry::open(info.clone());
    let failed = |e| device::error(&info.name, e);
    let place = |elems: usize| DeviceBuffer::new(&driver, 4 * elems as u64).map_err(failed);
    let graph = &plan.graph;
    let input_stride = input_stride(plan);
    let inputs = place(INPUTS * input_stride)?;
    let arena = DeviceBuffer::new(&driver, plan.memory.arena_bytes as u64).map_err(failed)?;
    let boundary = graph.boundary.iter().map(|v| place(graph.value(*v).shape.elems(plan.max_sizes)));
    let boundary = boundary.collect::<Result<Vec<_>, _>>()?;
    let rope_tables = graph.rope_tables.iter().map(|t| place(plan.max_sizes.cached * t.dims));
    let rope_tables = rope_tables.collect::<Result<Vec<_>, _>>()?;
    let scratch = Scratch::new(&driver, ScratchSizes::of(graph, plan.max_sizes, info.multiprocessors))?;
    let weights = GraphWeights::unfilled(&driver, graph).map_err(failed)?;
    let pool = PoolSize::of_one(plan.max_sizes.cached, plan.max_sizes.tokens);
    let state = CudaState::new(&driver, graph, terms.kv_type, pool)?;
    let mut prepared = Prepared::default();
    let mut all = Vec::with_capacity(plan.launches.len());
    for launch in &plan.launches {
        let mut emit = Emit {
            driver: &*driver,
            graph,
            values: Values { plan, arena: &arena, inputs: &inputs, input_stride, boundary: &boundary },
            sizes,
            weights: &weights,
            state: &state,
            rope_tables: &rope_tables,
            scratch: &scratch,
            profile: terms.profile,
            kv_type: terms.kv_type,
            positions_capacity: plan.max_sizes.cached,
            matrix_units: info.matrix_units,
            prepared,
            launches: Vec::new(),
        };
        emit.launch(plan, launch)?;
        prepared = emit.prepared;
        all.push((launch, emit.launches));
    }
    Ok(all)
}

/// The kernels that steps of these plans launch on a device, each once: of one token, of a few, and of as many as go into a step.
pub(super) fn kernels(plans: &Plans, info: &DriverInfo) -> Result<Vec<&'static str>, BackendError> {
    let terms = Terms { profile: plans.profile, kv_type: plans.info.kv_type };
    let most = plans.prefill.max_sizes.tokens;
    let mut all = Vec::new();
    for (plan, tokens) in [(&plans.decode, 1), (&plans.prefill, most.min(2)), (&plans.prefill, most)] {
        let sizes = StepSizes { tokens, logits_rows: 1, cached: plan.max_sizes.cached };
        let made = launches(plan, terms, info, sizes)?;
        all.extend(made.iter().flat_map(|(_, kernels)| kernels).map(|k| k.kernel));
    }
    if choices::most(&plans.decode.graph) > 0 {
        all.extend(choices::KERNELS);
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}
