//! The gates of the gated delta rule and the rule: delta_rule.wgsl with `fused`.

use super::{Runs, part_names, part_values};
use crate::emit::{Emitter, NONE};
use crate::ops::delta_rule;
use moe_run_graph::groups::DeltaStep;
use moe_run_graph::groups::parts::{DeltaGated, DeltaRuled, Sliced};
use moe_run_graph::ir::Graph;
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

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        let DeltaStep { b_part, dt_part, gates, rule } = self;
        let width = e.shape(gates.dt).width().ok_or_else(|| BackendError::mismatch("dt"))?;
        let decays = (width / rule.attrs.num_value_heads.max(1)) as u32;
        let stored = |value| e.stored(value).unwrap_or(NONE);
        let mut params = vec![
            ("a", e.small(Some(gates.a))?.into()),
            ("dt_bias", e.small(Some(gates.dt_bias))?.into()),
            // 0: none.
            ("bound", gates.bound.unwrap_or(0.0).into()),
            ("beta", stored(gates.beta).into()),
            ("decay_at", stored(gates.decay).into()),
        ];
        params.extend(part_names!("b").into_iter().zip(part_values(e, b_part.as_ref(), gates.b)?));
        params.extend(part_names!("dt").into_iter().zip(part_values(e, dt_part.as_ref(), gates.dt)?));
        delta_rule::emit_with(e, rule, decays, params, true)
    }
}
