//! Experts that are given by others' ids, and what the logits weigh them by.

use super::router::{sigmoid, softmax};
use moe_run_graph::ir::{GateKind, GivenExpertsAttrs};

/// `logits` [T, E], `from` [T, n] → `ids` [T, K], `weights` [T, K].
pub(super) fn given_experts(
    logits: &[f32],
    from: &[u32],
    attrs: &GivenExpertsAttrs,
    ids: &mut [u32],
    weights: &mut [f32],
) {
    let k = attrs.num_experts_per_tok;
    let given = from.len() / (logits.len() / attrs.num_experts);
    let rows = logits.chunks_exact(attrs.num_experts).zip(from.chunks_exact(given));
    let outputs = ids.chunks_exact_mut(k).zip(weights.chunks_exact_mut(k));
    for ((logits, from), (ids, weights)) in rows.zip(outputs) {
        let logits: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
        let gate = match attrs.gate {
            GateKind::Softmax | GateKind::SoftmaxAfterTopK | GateKind::SparseMixer => softmax(&logits),
            GateKind::Sigmoid => logits.iter().map(|l| sigmoid(*l)).collect(),
        };
        for (id, from) in ids.iter_mut().zip(from) {
            *id = from / attrs.divisor as u32;
        }
        let chosen: Vec<f64> = ids.iter().map(|id| gate[*id as usize]).collect();
        let sum = if attrs.norm_topk_prob { chosen.iter().sum() } else { 1.0 };
        for (weight, chosen) in weights.iter_mut().zip(chosen) {
            *weight = (chosen / sum * f64::from(attrs.scale)) as f32;
        }
    }
}
