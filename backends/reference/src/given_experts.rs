//! Experts that are given by others' ids, and what the logits weigh them by.

use super::router::{better_first, sigmoid, softmax, sqrt_softplus};
use moe_run_graph::ir::{GateKind, GivenExpertsAttrs};

/// `logits` [T, E], `from` [T, n] → `ids` [T, K], `weights` [T, K]. With a `table` [vocab, n], whose bits are ids, and n,
/// `from` [T] are its rows.
pub(super) fn given_experts(
    logits: &[f32],
    from: &[u32],
    attrs: &GivenExpertsAttrs,
    table: Option<(&[f32], usize)>,
    ids: &mut [u32],
    weights: &mut [f32],
) {
    let k = attrs.num_experts_per_tok;
    let tokens = logits.len() / attrs.num_experts;
    let looked_up = table.map(|table| look_up(table, from, attrs));
    let from = looked_up.as_deref().unwrap_or(from);
    let rows = logits.chunks_exact(attrs.num_experts).zip(from.chunks_exact(from.len() / tokens.max(1)));
    let outputs = ids.chunks_exact_mut(k).zip(weights.chunks_exact_mut(k));
    for ((logits, from), (ids, weights)) in rows.zip(outputs) {
        let logits: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
        let gate = match attrs.gate {
            GateKind::Softmax | GateKind::SoftmaxAfterTopK | GateKind::SparseMixer => softmax(&logits),
            GateKind::Sigmoid => logits.iter().map(|l| sigmoid(*l)).collect(),
            GateKind::SqrtSoftplus => logits.iter().map(|l| sqrt_softplus(*l)).collect(),
        };
        for (id, from) in ids.iter_mut().zip(from) {
            *id = from / attrs.divisor as u32;
        }
        if table.is_some() {
            // Stable: at a tie they stay as they are.
            ids.sort_by(|a, b| better_first(logits[*a as usize], logits[*b as usize]));
        }
        let chosen: Vec<f64> = ids.iter().map(|id| gate[*id as usize]).collect();
        let sum = if attrs.norm_topk_prob { chosen.iter().sum() } else { 1.0 };
        for (weight, chosen) in weights.iter_mut().zip(chosen) {
            *weight = (chosen / sum * f64::from(attrs.scale)) as f32;
        }
    }
}

/// The first K ids of each token.
fn look_up((table, width): (&[f32], usize), tokens: &[u32], attrs: &GivenExpertsAttrs) -> Vec<u32> {
    let (k, last) = (attrs.num_experts_per_tok, (attrs.num_experts * attrs.divisor) as u32 - 1);
    let row = |token: &u32| &table[*token as usize * width..][..k];
    tokens.iter().flat_map(|token| row(token).iter().map(|word| word.to_bits().min(last))).collect()
}
