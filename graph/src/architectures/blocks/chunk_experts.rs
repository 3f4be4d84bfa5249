//! Small experts, each shared by a run of a layer's experts: they read what the chosen experts gave, and what they give is added.

use super::branch::Branch;
use super::ffn::FfnSpec;
use super::moe::Choice;
use crate::architectures::{LowerError, Lowering, only};
use crate::config::{ChunkConfig, MoeConfig};
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{GivenExpertsAttrs, LayerIdx, Op, Stage, ValueId};

/// Appends the small experts of the chosen ones' sum, and both together.
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub(super) fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    routed: Branch,
    choice: Choice,
    config: &MoeConfig,
    chunks: &ChunkConfig,
    spec: &FfnSpec,
) -> Result<Branch, LowerError> {
    let at = Some(layer);
    l.graph.tap(at, Stage::MoeRoutedOut, &[routed.plain])?;
    let count = config.num_experts / chunks.experts_per_group;
    let attrs = GivenExpertsAttrs {
        num_experts: config.num_experts,
        num_experts_per_tok: config.num_experts_per_tok.min(count),
        gate: config.gate,
        norm_topk_prob: true,
        scale: chunks.scale * l.config.residual_scale.unwrap_or(1.0),
        divisor: chunks.experts_per_group,
        table: None,
    };
    let inputs = [choice.logits, choice.ids];
    let of = |scale| Op::GivenExperts(GivenExpertsAttrs { scale, ..attrs.clone() });
    let [ids, weights] = pair(&l.graph.push(at, "chunk_router", of(attrs.scale), &inputs)?);
    let plain = match l.config.residual_scale {
        Some(_) => l.graph.push(at, "chunk_router_unscaled", of(chunks.scale), &inputs)?[1],
        None => weights,
    };
    // The factor on all small experts is one of their weights: a stage shows them without it.
    let shown = l.graph.push(at, "chunk_weights", of(1.0), &inputs)?;
    l.graph.tap(at, Stage::ChunkIds, &[ids])?;
    l.graph.tap(at, Stage::ChunkWeights, &[shown[1]])?;

    let (width, hidden_size) = (chunks.intermediate_size, l.config.hidden_size);
    let file = |rest: &str| blk(layer.index(), rest);
    // Without the residual scale, which the routed sum has already where there is one.
    let read = routed.plain;
    let mut product = |name, rest, rows, inner, x| -> Result<ValueId, LowerError> {
        let weight = l.expert_matrix(&file(rest), count, rows, inner)?;
        Ok(only(l.graph.push(at, name, Op::ExpertMatMul { weight, bias: None }, &[x, ids])?))
    };
    let gate = product("chunk_gate_proj", tensor::FFN_GATE_CHEXPS, width, hidden_size, read)?;
    let up = product("chunk_up_proj", tensor::FFN_UP_CHEXPS, width, hidden_size, read)?;
    let act = Op::GatedAct { activation: spec.expert_activation };
    let act = l.graph.push(at, "chunk_swiglu", act, &[gate, up])?[1];
    let weight = l.expert_matrix(&file(tensor::FFN_DOWN_CHEXPS), count, hidden_size, width)?;
    let op = Op::ExpertMatMul { weight, bias: None };
    let out = only(l.graph.push(at, "chunk_down_proj", op, &[act, ids])?);
    let names = ["chunk_combine", "chunk_combine_unscaled"];
    let sum = Branch::through(l, at, names, &Op::ExpertCombine, [[out, weights], [out, plain]])?;
    let operands = [[routed.scaled, sum.scaled], [routed.plain, sum.plain]];
    Branch::through(l, at, ["add_chunk_experts", "add_chunk_experts_unscaled"], &Op::Add, operands)
}

/// Ids and weights.
fn pair(outputs: &[ValueId]) -> [ValueId; 2] {
    [outputs[0], outputs[1]]
}
