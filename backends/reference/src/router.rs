//! Router logits → the chosen experts, best first, and their weights.

use moe_run_graph::ir::{ExpertGroups, GateKind, GroupScore, RouterAttrs};
use std::cmp::Ordering;

/// Better first: the larger value; the lower expert at a tie; NaN behind everything.
pub(super) fn rank(values: &[f64], a: usize, b: usize) -> Ordering {
    better_first(values[a], values[b]).then(a.cmp(&b))
}

/// The larger value in front; NaN behind everything.
pub(super) fn better_first(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => b.partial_cmp(&a).unwrap_or(Ordering::Equal),
    }
}

pub(super) fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = x.iter().map(|v| (v - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|e| e / sum).collect()
}

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(super) fn sqrt_softplus(x: f64) -> f64 {
    (x.max(0.0) + (-x.abs()).exp().ln_1p()).sqrt()
}

/// The share of each expert in a softmax over itself and those near it that are not better: `order` are the best, best first.
fn sparse_mixer(logits: &[f64], order: &[usize]) -> Vec<f64> {
    let share = |(i, expert): (usize, &usize)| {
        let best = logits[*expert];
        let left = (0..logits.len()).filter(|e| !order[..i].contains(e)).map(|e| logits[e]);
        1.0 / left.filter(|s| GateKind::is_near(*s, best)).map(|s| (s - best).exp()).sum::<f64>()
    };
    order.iter().enumerate().map(share).collect()
}

/// Whether each expert belongs to one of the best groups; `values` are what its experts are ranked by.
fn in_best_groups(values: &[f64], groups: &ExpertGroups) -> Vec<bool> {
    let size = values.len() / groups.n_group;
    let scores: Vec<f64> = values
        .chunks_exact(size)
        .map(|group| {
            let mut order: Vec<usize> = (0..size).collect();
            order.sort_by(|a, b| rank(group, *a, *b));
            match groups.score {
                GroupScore::Best => group[order[0]],
                GroupScore::BestTwo => group[order[0]] + group[order[1]],
            }
        })
        .collect();
    let mut order: Vec<usize> = (0..groups.n_group).collect();
    order.sort_by(|a, b| rank(&scores, *a, *b));
    (0..values.len()).map(|expert| order[..groups.topk_group].contains(&(expert / size))).collect()
}

/// `logits` [T, E] → `ids` [T, K], `weights` [T, K].
pub(super) fn router(
    logits: &[f32],
    attrs: &RouterAttrs,
    selection_bias: Option<&[f32]>,
    expert_scale: Option<&[f32]>,
    ids: &mut [u32],
    weights: &mut [f32],
) {
    let k = attrs.num_experts_per_tok;
    let tokens =
        logits.chunks_exact(attrs.num_experts).zip(ids.chunks_exact_mut(k)).zip(weights.chunks_exact_mut(k));
    for ((logits, ids), weights) in tokens {
        // Chosen by the logits, whose order the gates keep: exact ties of logits stay ties.
        let logits: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
        let gate: Vec<f64> = match attrs.gate {
            GateKind::Softmax => softmax(&logits),
            GateKind::Sigmoid => logits.iter().map(|l| sigmoid(*l)).collect(),
            GateKind::SqrtSoftplus => logits.iter().map(|l| sqrt_softplus(*l)).collect(),
            GateKind::SoftmaxAfterTopK | GateKind::SparseMixer => logits.clone(),
        };
        let values: Vec<f64> = match selection_bias {
            Some(bias) => gate.iter().zip(bias).map(|(g, b)| g + f64::from(*b)).collect(),
            None => gate.clone(),
        };
        let choice = if selection_bias.is_some() { &values } else { &logits };
        let mut order: Vec<usize> = (0..attrs.num_experts).collect();
        if let Some(groups) = &attrs.groups {
            let open = in_best_groups(&values, groups);
            order.retain(|expert| open[*expert]);
        }
        order.sort_by(|a, b| rank(choice, *a, *b));
        order.truncate(k);

        let mut chosen: Vec<f64> = order.iter().map(|e| gate[*e]).collect();
        match attrs.gate {
            GateKind::Softmax | GateKind::Sigmoid | GateKind::SqrtSoftplus => {}
            GateKind::SoftmaxAfterTopK => chosen = softmax(&chosen),
            GateKind::SparseMixer => chosen = sparse_mixer(&logits, &order),
        }
        let sum = if attrs.norm_topk_prob { chosen.iter().sum() } else { 1.0 };
        for (i, expert) in order.iter().enumerate() {
            ids[i] = *expert as u32;
            let own = expert_scale.map_or(1.0, |scale| f64::from(scale[*expert]));
            weights[i] = (chosen[i] / sum * f64::from(attrs.scale) * own) as f32;
        }
    }
}
