//! Stage 5, wgpu: how each op becomes dispatches; one file an op.

mod add;
mod attention;
mod attention_scores;
mod attention_softmax;
mod embed;
mod expert_combine;
mod expert_matmul;
mod gated_act;
mod get_rows;
mod kv_write;
mod matmul;
mod mul;
mod rms_norm;
mod rope;
mod router;
pub(super) mod sample;

pub(super) use attention::{Fused, emit_attention, max_query_rows, max_splits};
pub(super) use kv_write::row_words;
pub(super) use router::gate_code;

use super::emit::Emitter;
use moe_run_graph::ir::{Graph, Node, Op};
use moe_run_runtime::error::BackendError;

/// Adds the dispatches of one node.
pub(super) fn emit(e: &mut Emitter<'_>, node: &Node) -> Result<(), BackendError> {
    match &node.op {
        Op::Embed { table } => embed::emit(e, node, table),
        Op::RmsNorm { weight, eps, heads } => rms_norm::emit(e, node, *weight, *eps, *heads),
        Op::MatMul { weight, bias, scale } => matmul::emit(e, node, weight, *bias, *scale),
        Op::Rope { table, pairing, heads } => rope::emit(e, node, *table, *pairing, *heads),
        Op::KvWrite { key, value } => kv_write::emit(e, node, *key, *value),
        Op::Attention(attrs) => attention::emit(e, node, attrs),
        Op::AttentionScores(attrs) => attention_scores::emit(e, node, attrs),
        Op::AttentionSoftmax(attrs) => attention_softmax::emit(e, node, attrs),
        Op::Router(attrs) => router::emit(e, node, attrs),
        Op::ExpertMatMul { weight, bias } => expert_matmul::emit(e, node, weight, *bias),
        Op::GatedAct { activation } => gated_act::emit(e, node, *activation),
        Op::ExpertCombine => expert_combine::emit(e, node),
        Op::Add => add::emit(e, node),
        Op::Mul => mul::emit(e, node),
        Op::GetRows => get_rows::emit(e, node),
        // A tap hands on what its inputs' buffers hold.
        Op::Tap { .. } => Ok(()),
    }
}

/// What a node asks for that the shaders lack.
pub(super) fn lacking(graph: &Graph, node: &Node) -> Option<String> {
    match &node.op {
        Op::Attention(attrs) | Op::AttentionScores(attrs) => attention::lacking(attrs),
        Op::Router(attrs) => router::lacking(attrs),
        Op::ExpertMatMul { weight, .. } => expert_matmul::lacking(graph, weight),
        Op::KvWrite { key, value } => kv_write::lacking(graph, *key, *value),
        Op::Rope { heads, .. } => rope::lacking(graph, node, *heads),
        _ => None,
    }
}
