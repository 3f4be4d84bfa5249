//! DeltaRule: a workgroup for 32 columns of a value head's state, which it keeps from token to token.

use crate::emit::{Emitter, Extent, Grid, StateBinding};
use crate::params::Param;
use moe_run_graph::groups::parts::DeltaRuled;
use moe_run_graph::ir::{DeltaRuleAttrs, HeadMap, Node};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 256;
/// Columns of a workgroup: COLUMNS in the shader.
const COLUMNS: usize = 32;
/// The widest key head: what fits beside it in 16 KiB of workgroup memory, and in a lane's registers.
const MAX_KEY_DIM: usize = 512;

pub(crate) fn lacking(attrs: &DeltaRuleAttrs) -> Option<String> {
    let DeltaRuleAttrs {
        num_key_heads: _,
        num_value_heads: _,
        key_head_dim,
        value_head_dim: _,
        head_map: HeadMap::Tiled | HeadMap::Grouped,
        eps: _,
        scale: _,
        state: _,
    } = *attrs;
    (key_head_dim > MAX_KEY_DIM).then(|| format!("key heads of {key_head_dim}, wanted at most {MAX_KEY_DIM}"))
}

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node) -> Result<(), BackendError> {
    let rule = DeltaRuled::of(node).ok_or_else(|| BackendError::mismatch(node.op.stem()))?;
    let decays = e.width(node, rule.decay)? / rule.attrs.num_value_heads as u32;
    let gates = vec![("beta", e.at(rule.beta)?.into()), ("decay_at", e.at(rule.decay)?.into())];
    emit_with(e, &rule, decays, gates, false)
}

/// The rule with its gates' parameters; `makes_gates`: it makes them itself. `decays` of a head.
pub(crate) fn emit_with(
    e: &mut Emitter<'_>,
    rule: &DeltaRuled,
    decays: u32,
    gates: Vec<(&'static str, Param)>,
    makes_gates: bool,
) -> Result<(), BackendError> {
    let attrs = &rule.attrs;
    let qkv = e.at(rule.qkv)?;
    let y = e.output(rule.y);
    let sizes = [("LANES", LANES), ("KEY_DIM", attrs.key_head_dim as u32)];
    let mut variant = e.variant("delta_rule", &sizes);
    if makes_gates {
        variant = variant.fused();
    }
    let mut params = gates;
    params.extend([
        ("qkv", qkv.into()),
        ("positions", e.at(rule.positions)?.into()),
        ("y", y.into()),
        ("key_heads", (attrs.num_key_heads as u32).into()),
        ("heads", (attrs.num_value_heads as u32).into()),
        ("tiled", u32::from(attrs.head_map == HeadMap::Tiled).into()),
        ("dv", (attrs.value_head_dim as u32).into()),
        ("decays", decays.into()),
        ("eps", attrs.eps.into()),
        ("scale", attrs.scale.into()),
    ]);
    let columns = Extent::Fixed(attrs.value_head_dim.div_ceil(COLUMNS) as u32);
    let heads = Extent::Fixed(attrs.num_value_heads as u32);
    e.push(variant, Grid::new(columns, heads, Extent::Fixed(1)), &params);
    if let Some(dispatch) = e.last() {
        dispatch.state = StateBinding::Update(vec![attrs.state]);
    }
    Ok(())
}
