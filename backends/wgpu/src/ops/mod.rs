//! Stage 5, wgpu: how each op becomes dispatches; one file an op.

mod add;
mod attention;
mod attention_scores;
mod attention_softmax;
mod causal_conv;
mod compress;
mod compressed_attention;
mod concat;
mod delta_gates;
pub(super) mod delta_rule;
mod embed;
mod expert_combine;
mod expert_matmul;
mod gated_act;
mod get_rows;
mod given_experts;
mod head_matmul;
mod hyper_connect;
mod hyper_gates;
mod index_scores;
mod index_select;
mod kv_write;
mod layer_norm;
mod matmul;
mod mul;
mod mul_heads;
mod pointwise;
mod position_scale;
pub(super) mod rms_norm;
mod rope;
mod router;
pub(super) mod sample;
mod slice;
mod ssm_scan;

pub(super) use attention::{Fused, emit_attention, max_query_rows, max_splits};
pub(super) use gated_act::activation_params;
pub(super) use kv_write::row_words;
#[cfg(test)]
pub(super) use router::MAX_EXPERTS as MAX_ROUTED_EXPERTS;
pub(super) use router::{choice_params, group_codes};

use super::emit::Emitter;
use moe_run_graph::ir::{CausalConvAttrs, Graph, Node, Op, RopePairing, WeightHome, WeightSlice};
use moe_run_runtime::error::BackendError;

/// Adds the dispatches of one node.
pub(super) fn emit(e: &mut Emitter<'_>, node: &Node) -> Result<(), BackendError> {
    match &node.op {
        Op::Embed { table, scale } => embed::emit(e, node, table, *scale),
        Op::RmsNorm { weight, eps, heads } => rms_norm::emit(e, node, *weight, *eps, *heads),
        Op::HeadMatMul { weight, transposed } => head_matmul::emit(e, node, weight, *transposed),
        Op::MatMul { weight, bias, scale } => matmul::emit(e, node, weight, *bias, *scale),
        Op::Rope { table, pairing, heads } => rope::emit(e, node, *table, *pairing, *heads),
        Op::KvWrite { key, value } => kv_write::emit(e, node, *key, *value),
        Op::Attention(attrs) => attention::emit(e, node, attrs),
        Op::AttentionScores(attrs) => attention_scores::emit(e, node, attrs),
        Op::AttentionSoftmax(attrs) => attention_softmax::emit(e, node, attrs),
        Op::Router(attrs) => router::emit(e, node, attrs),
        Op::GivenExperts(attrs) => given_experts::emit(e, node, attrs),
        Op::IndexScores(attrs) => index_scores::emit(e, node, attrs),
        Op::IndexSelect { top_k, every } => index_select::emit(e, node, *top_k, *every),
        Op::ExpertMatMul { weight, bias } => expert_matmul::emit(e, node, weight, *bias),
        Op::GatedAct { activation } => gated_act::emit(e, node, *activation),
        Op::ExpertCombine => expert_combine::emit(e, node),
        Op::Add => add::emit(e, node),
        Op::Mul => mul::emit(e, node),
        Op::GetRows => get_rows::emit(e, node),
        Op::Pointwise { function } => pointwise::emit(e, node, *function),
        Op::Concat { heads } => concat::emit(e, node, *heads),
        Op::Slice { heads, start, len } => slice::emit(e, node, *heads, *start, *len),
        Op::DeltaGates { a, dt_bias, bound } => delta_gates::emit(e, node, *a, *dt_bias, *bound),
        Op::DeltaRule(_) => delta_rule::emit(e, node),
        Op::SsmScan(attrs) => ssm_scan::emit(e, node, attrs),
        Op::CausalConv(attrs) => causal_conv::emit(e, node, attrs),
        Op::HyperGates(attrs) => hyper_gates::emit(e, node, attrs),
        Op::HyperConnect { streams } => hyper_connect::emit(e, node, *streams),
        Op::Compress(attrs) => compress::emit(e, node, attrs),
        Op::CompressedAttention(attrs) => compressed_attention::emit(e, node, attrs),
        Op::LayerNorm { weight, bias, eps } => layer_norm::emit(e, node, *weight, *bias, *eps),
        Op::PositionScale(attrs) => position_scale::emit(e, node, attrs),
        Op::MulHeads => mul_heads::emit(e, node),
        // A tap hands on what its inputs' buffers hold: it is no launch.
        Op::Tap { stage: _ } => Err(BackendError::mismatch(node.op.stem())),
    }
}

/// What a node asks for that the shaders lack: each op with every attribute that they read, so that one more does not compile
/// here.
pub(super) fn lacking(graph: &Graph, node: &Node) -> Option<String> {
    match &node.op {
        Op::Embed { table, scale: _ } => any_rows(table),
        Op::RmsNorm { weight: _, eps: _, heads: _ } => None,
        Op::MatMul { weight, bias: _, scale: _ } => any_rows(weight),
        Op::ExpertMatMul { weight, bias: _ } => {
            any_rows(weight).or_else(|| expert_matmul::lacking(graph, weight))
        }
        Op::Rope { table: _, pairing: RopePairing::Half | RopePairing::Interleaved, heads } => {
            rope::lacking(graph, node, *heads)
        }
        Op::KvWrite { key, value } => kv_write::lacking(graph, *key, *value),
        Op::Attention(attrs) | Op::AttentionScores(attrs) | Op::AttentionSoftmax(attrs) => {
            attention::lacking(attrs)
        }
        Op::Router(attrs) => router::lacking(attrs),
        Op::GivenExperts(attrs) => given_experts::lacking(attrs),
        Op::IndexScores(attrs) => index_scores::lacking(attrs),
        Op::IndexSelect { top_k, every } => index_select::lacking(*top_k, *every),
        Op::HeadMatMul { weight, transposed: _ } => any_rows(weight),
        Op::LayerNorm { weight: _, bias: _, eps: _ } | Op::MulHeads => None,
        Op::PositionScale(attrs) => position_scale::lacking(attrs),
        // `gated_act::activation_params` numbers each function.
        Op::GatedAct { activation: _ } => None,
        Op::CausalConv(CausalConvAttrs { weight: _, bias: _, activation: _, state: _ }) => None,
        Op::HyperGates(attrs) => hyper_gates::lacking(attrs),
        Op::HyperConnect { streams: _ } => None,
        Op::Compress(attrs) => compress::lacking(attrs),
        Op::CompressedAttention(attrs) => compressed_attention::lacking(attrs),
        Op::DeltaGates { a: _, dt_bias: _, bound: _ } => None,
        Op::DeltaRule(attrs) => delta_rule::lacking(attrs),
        Op::SsmScan(attrs) => ssm_scan::lacking(attrs),
        Op::Pointwise { function: _ } => None,
        Op::Concat { heads: _ } | Op::Slice { heads: _, start: _, len: _ } => None,
        Op::ExpertCombine | Op::Add | Op::Mul | Op::GetRows => None,
        Op::Tap { stage: _ } => None,
    }
}

/// What a slice asks for that the shaders lack: nothing, any rows of any experts are read.
fn any_rows(slice: &WeightSlice) -> Option<String> {
    let WeightSlice { tensor: _, rows: _, experts: _, home: WeightHome::Device } = slice;
    None
}
