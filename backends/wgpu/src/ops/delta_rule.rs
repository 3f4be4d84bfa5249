//! DeltaRule: a workgroup for 32 columns of a value head's state, which it keeps from token to token.

use crate::emit::{Emitter, Extent, Grid, StateBinding};
use moe_run_graph::ir::{DeltaRuleAttrs, HeadMap, Node};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 256;
/// Columns of a workgroup: COLUMNS in the shader.
const COLUMNS: usize = 32;
/// The widest key head: what fits beside it in 16 KiB of workgroup memory, and in a lane's registers.
const MAX_KEY_DIM: usize = 512;

pub(super) fn lacking(attrs: &DeltaRuleAttrs) -> Option<String> {
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

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, attrs: &DeltaRuleAttrs) -> Result<(), BackendError> {
    let (qkv, beta, decay) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?, e.at(node.inputs[2])?);
    let decays = e.width(node, node.inputs[2])? / attrs.num_value_heads as u32;
    let y = e.output(node.outputs[0]);
    let variant = e.variant("delta_rule", &[("LANES", LANES), ("KEY_DIM", attrs.key_head_dim as u32)]);
    let params = [
        ("qkv", qkv.into()),
        ("beta", beta.into()),
        ("decay_at", decay.into()),
        ("positions", e.at(node.inputs[3])?.into()),
        ("y", y.into()),
        ("key_heads", (attrs.num_key_heads as u32).into()),
        ("heads", (attrs.num_value_heads as u32).into()),
        ("tiled", u32::from(attrs.head_map == HeadMap::Tiled).into()),
        ("dv", (attrs.value_head_dim as u32).into()),
        ("decays", decays.into()),
        ("eps", attrs.eps.into()),
        ("scale", attrs.scale.into()),
    ];
    let columns = Extent::Fixed(attrs.value_head_dim.div_ceil(COLUMNS) as u32);
    let heads = Extent::Fixed(attrs.num_value_heads as u32);
    e.push(variant, Grid::new(columns, heads, Extent::Fixed(1)), &params);
    if let Some(dispatch) = e.last() {
        dispatch.state = StateBinding::Update(vec![attrs.state]);
    }
    Ok(())
}
