//! kernels/delta_step.cu.

use super::{Runs, int, part_params};
use crate::driver::Param;
use crate::ops::{Emit, delta_rule};
use moe_run_graph::groups::parts::{DeltaGated, DeltaRuled, Sliced};
use moe_run_graph::groups::{DeltaStep, Group};
use moe_run_graph::ir::{Graph, HeadMap};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

impl Runs for DeltaStep {
    fn fits(&self, _: &Graph, _: KvType) -> bool {
        let DeltaStep { b_part, dt_part, gates, rule } = self;
        let DeltaGated { node: _, b: _, dt: _, a: _, dt_bias: _, bound: _, beta: _, decay: _ } = gates;
        let DeltaRuled { node: _, qkv: _, beta: _, decay: _, positions: _, sequence: _, attrs, y: _ } = rule;
        let parts = b_part.iter().chain(dt_part);
        parts.for_each(|Sliced { node: _, x: _, heads: _, start: _, len: _, y: _ }| {});
        delta_rule::lacking(attrs).is_none()
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        let DeltaStep { b_part, dt_part, gates, rule } = self;
        let attrs = &rule.attrs;
        let warps = delta_rule::warps(attrs);
        let mut params = vec![emit.value(rule.qkv)?];
        params.extend(part_params(emit, b_part.as_ref(), gates.b)?);
        params.extend(part_params(emit, dt_part.as_ref(), gates.dt)?);
        params.extend([
            emit.weights.vector(gates.a),
            emit.weights.vector(gates.dt_bias),
            // 0: none.
            Param::F32(gates.bound.unwrap_or(0.0)),
            emit.opt_value(gates.beta),
            emit.opt_value(gates.decay),
            emit.value(rule.positions)?,
            emit.state.param(attrs.state),
            emit.value(rule.y)?,
            int(attrs.num_key_heads),
            int(attrs.key_head_dim),
            int(attrs.value_head_dim),
            int(usize::from(attrs.head_map == HeadMap::Tiled)),
            int(emit.width(gates.dt)? / attrs.num_value_heads),
            Param::F32(attrs.eps),
            Param::F32(attrs.scale),
        ]);
        let grid = [attrs.value_head_dim.div_ceil(delta_rule::COLUMNS), attrs.num_value_heads, 1];
        emit.push(Self::NAME, grid, 32 * warps as u32, delta_rule::shared_bytes(1, warps), params);
        Ok(())
    }
}
