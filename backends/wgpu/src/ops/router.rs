//! Router: the best K of E logits and their weights, one workgroup a token.

use crate::emit::{Emitter, Extent, Grid, Rows};
use crate::params::Param;
use moe_run_graph::ir::{ExpertGroups, GateKind, GroupScore, Node, RouterAttrs};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;

/// The most experts whose key, gate, id and weight, 16 bytes, stand in the 16 KiB of workgroup memory that WebGPU grants,
/// beside a sum of 16 bytes and a maximum of 4 for each lane.
pub(crate) const MAX_EXPERTS: usize = (16384 - LANES as usize * 20) / 16;

/// The gate as `common/route.wgsl` numbers it.
fn gate_code(gate: GateKind) -> u32 {
    match gate {
        GateKind::Softmax => 0,
        GateKind::Sigmoid => 1,
        GateKind::SoftmaxAfterTopK => 2,
        GateKind::SparseMixer => 3,
        GateKind::SqrtSoftplus => 4,
    }
}

/// GROUPS, topk_group and best_two of `common/route.wgsl`.
pub(crate) fn group_codes(attrs: &RouterAttrs) -> [u32; 3] {
    match attrs.groups {
        None => [1, 1, 0],
        Some(ExpertGroups { n_group, topk_group, score }) => {
            [n_group as u32, topk_group as u32, u32::from(score == GroupScore::BestTwo)]
        }
    }
}

/// The parameters of `common/route.wgsl`, which chooses for the op and for the group with its experts.
pub(crate) fn choice_params(
    e: &mut Emitter<'_>,
    attrs: &RouterAttrs,
) -> Result<[(&'static str, Param); 8], BackendError> {
    let [_, topk_group, best_two] = group_codes(attrs);
    Ok([
        ("num_experts", (attrs.num_experts as u32).into()),
        ("experts_per_token", (attrs.num_experts_per_tok as u32).into()),
        ("gate", gate_code(attrs.gate).into()),
        ("normalise", u32::from(attrs.norm_topk_prob).into()),
        ("scale", attrs.scale.into()),
        ("selection_bias", e.small(attrs.selection_bias)?.into()),
        ("topk_group", topk_group.into()),
        ("best_two", best_two.into()),
    ])
}

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, attrs: &RouterAttrs) -> Result<(), BackendError> {
    let x = e.at(node.inputs[0])?;
    let (ids, weights) = (e.output(node.outputs[0]), e.output(node.outputs[1]));
    let num_experts = attrs.num_experts as u32;
    let [groups, ..] = group_codes(attrs);
    let variant = e.variant("router", &[("LANES", LANES), ("KEYS", num_experts), ("GROUPS", groups)]);
    let mut params = vec![("x", x.into()), ("ids", ids.into()), ("weights", weights.into())];
    params.extend(choice_params(e, attrs)?);
    params.push(("expert_scale", e.small(attrs.expert_scale)?.into()));
    let tokens = Extent::Rows { rows: Rows::of(e.shape(node.outputs[0])), times: 1, over: 1 };
    e.push(variant, Grid::new(tokens, Extent::Fixed(1), Extent::Fixed(1)), &params);
    Ok(())
}

pub(super) fn lacking(attrs: &RouterAttrs) -> Option<String> {
    let RouterAttrs {
        num_experts: experts,
        num_experts_per_tok: _,
        gate: _,
        norm_topk_prob: _,
        scale: _,
        selection_bias: _,
        groups: _,
        expert_scale: _,
    } = *attrs;
    (experts > MAX_EXPERTS).then(|| format!("{experts} experts, wanted at most {MAX_EXPERTS}"))
}
