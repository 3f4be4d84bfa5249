//! Router logits → the chosen experts, best first, and their weights as applied. Ties go to the lower id, NaN ranks
//! last.

use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output};
use moe_run_graph::ir::{ExpertGroups, GateKind, GroupScore, RouterAttrs};

/// Tokens in a chunk.
pub const CHUNK_TOKENS: usize = 16;

/// The most groups of experts: a bit each.
const MAX_GROUPS: usize = 64;

/// What a choice asks for that is not here.
pub fn lacking(attrs: &RouterAttrs) -> Option<String> {
    let RouterAttrs {
        num_experts: _,
        num_experts_per_tok: _,
        gate:
            GateKind::Softmax
            | GateKind::Sigmoid
            | GateKind::SoftmaxAfterTopK
            | GateKind::SparseMixer
            | GateKind::SqrtSoftplus,
        norm_topk_prob: _,
        scale: _,
        selection_bias: _,
        groups,
        expert_scale: _,
    } = attrs;
    let n_group = groups.map_or(1, |groups| groups.n_group);
    (n_group > MAX_GROUPS).then(|| format!("{n_group} groups of experts, wanted at most {MAX_GROUPS}"))
}

/// The choice for the tokens of a step.
pub struct Route {
    /// [T, E].
    pub logits: Input,
    /// Gate, K, scale.
    pub attrs: RouterAttrs,
    /// [E], added for the choice only.
    pub bias: Option<Box<[f32]>>,
    /// [E], a factor of each expert's weight.
    pub expert_scale: Option<Box<[f32]>>,
    /// [T, K], if anybody wants them.
    pub ids: Option<Output>,
    /// [T, K], if anybody wants them.
    pub weights: Option<Output>,
}

impl Route {
    /// Chooses for one token.
    pub fn token(&self, step: &Step<'_>, token: usize, ids: &mut [u32], weights: &mut [f32]) {
        let (logits, bias) = (step.row(self.logits, token), self.bias.as_deref());
        choose(&self.attrs, logits, bias, self.expert_scale.as_deref(), ids, weights);
    }
}

/// √ln(1 + e^x).
pub(super) fn sqrt_softplus(x: f64) -> f64 {
    (x.max(0.0) + (-x.abs()).exp().ln_1p()).sqrt()
}

/// Whether `a`, which is later in the list, stands before `b`.
pub(super) fn better<T: PartialOrd>(a: T, b: T) -> bool {
    let is_nan = |x: &T| x.partial_cmp(x).is_none();
    a > b || (is_nan(&b) && !is_nan(&a))
}

/// The best groups, a bit each. `value` is what experts are ranked by among those of their group.
fn best_groups(num_experts: usize, groups: &ExpertGroups, value: impl Fn(usize) -> f64) -> u64 {
    let size = num_experts / groups.n_group;
    let mut scores = [f64::NAN; MAX_GROUPS];
    for (group, score) in scores[..groups.n_group].iter_mut().enumerate() {
        let (mut best, mut second) = (f64::NAN, f64::NAN);
        for value in (group * size..(group + 1) * size).map(&value) {
            if better(value, best) {
                (best, second) = (value, best);
            } else if better(value, second) {
                second = value;
            }
        }
        *score = match groups.score {
            GroupScore::Best => best,
            GroupScore::BestTwo => best + second,
        };
    }
    let mut taken = 0u64;
    for _ in 0..groups.topk_group {
        let free = (0..groups.n_group).filter(|group| taken >> group & 1 == 0);
        let best = free.reduce(|a, b| if better(scores[b], scores[a]) { b } else { a });
        taken |= best.map_or(0, |group| 1 << group);
    }
    taken
}

fn choose(
    attrs: &RouterAttrs,
    logits: &[f32],
    bias: Option<&[f32]>,
    expert_scale: Option<&[f32]>,
    ids: &mut [u32],
    weights: &mut [f32],
) {
    let logit = |e: usize| f64::from(logits[e]);
    let gate = |e: usize| match attrs.gate {
        GateKind::Sigmoid => 1.0 / (1.0 + (-logit(e)).exp()),
        GateKind::SqrtSoftplus => sqrt_softplus(logit(e)),
        // Softmax keeps the logits' order, and its denominator comes later.
        GateKind::Softmax | GateKind::SoftmaxAfterTopK | GateKind::SparseMixer => logit(e),
    };
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a }));
    let total = match attrs.gate {
        GateKind::Softmax => (0..logits.len()).map(|e| (logit(e) - max).exp()).sum::<f64>(),
        GateKind::Sigmoid | GateKind::SoftmaxAfterTopK | GateKind::SparseMixer | GateKind::SqrtSoftplus => {
            1.0
        }
    };
    let probability = |e: usize| match attrs.gate {
        GateKind::Softmax => (logit(e) - max).exp() / total,
        GateKind::Sigmoid | GateKind::SoftmaxAfterTopK | GateKind::SparseMixer | GateKind::SqrtSoftplus => {
            gate(e)
        }
    };
    // With a bias the choice goes by probability + bias, else by the logits, so that exact ties stay ties.
    let rank = |e: usize| match bias {
        None => logits[e],
        Some(bias) => (probability(e) + f64::from(bias[e])) as f32,
    };
    let open = match &attrs.groups {
        None => !0,
        Some(groups) => best_groups(logits.len(), groups, |e| {
            probability(e) + bias.map_or(0.0, |bias| f64::from(bias[e]))
        }),
    };
    let group_size = attrs.groups.map_or(logits.len(), |groups| logits.len() / groups.n_group);
    // Insertion into the list of the best so far; `weights` holds their ranks meanwhile.
    let mut found = 0;
    for e in (0..logits.len()).filter(|e| open >> (e / group_size) & 1 == 1) {
        let value = rank(e);
        if found == ids.len() && !better(value, weights[found - 1]) {
            continue;
        }
        let mut at = if found < ids.len() { found } else { found - 1 };
        while at > 0 && better(value, weights[at - 1]) {
            (ids[at], weights[at]) = (ids[at - 1], weights[at - 1]);
            at -= 1;
        }
        (ids[at], weights[at]) = (e as u32, value);
        found = (found + 1).min(ids.len());
    }
    if attrs.gate == GateKind::SparseMixer {
        for (i, weight) in weights.iter_mut().enumerate() {
            let best = logit(ids[i] as usize);
            let left = (0..logits.len()).filter(|e| !ids[..i].contains(&(*e as u32))).map(logit);
            let near = left.filter(|s| GateKind::is_near(*s, best));
            let share = 1.0 / near.map(|s| (s - best).exp()).sum::<f64>();
            let own = expert_scale.map_or(1.0, |scale| f64::from(scale[ids[i] as usize]));
            *weight = (share * f64::from(attrs.scale) * own) as f32;
        }
        return;
    }
    let chosen = |id: u32| match attrs.gate {
        GateKind::Sigmoid | GateKind::SqrtSoftplus => gate(id as usize),
        GateKind::Softmax | GateKind::SoftmaxAfterTopK | GateKind::SparseMixer => {
            (logit(id as usize) - max).exp()
        }
    };
    // e^(l − max) / Σ over all, then over the chosen: the first sum cancels where both are asked for, unless it is a NaN, by
    // which a NaN among the logits that were not chosen makes itself known.
    let divisor = match attrs.gate {
        GateKind::Softmax if !attrs.norm_topk_prob || total.is_nan() => total,
        GateKind::Sigmoid | GateKind::SqrtSoftplus if !attrs.norm_topk_prob => 1.0,
        _ => ids.iter().map(|id| chosen(*id)).sum(),
    };
    for (id, weight) in ids.iter().zip(weights.iter_mut()) {
        let own = expert_scale.map_or(1.0, |scale| f64::from(scale[*id as usize]));
        *weight = (chosen(*id) / divisor * f64::from(attrs.scale) * own) as f32;
    }
}

impl Launch for Route {
    /// Ids and weights are shared by [`CHUNK_TOKENS`] rows.
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, scratch: &mut Scratch) {
        let (tokens, per_tok) = (step.sizes.tokens, self.attrs.num_experts_per_tok);
        for mut chunk in worker.shares(tokens.div_ceil(CHUNK_TOKENS)) {
            for token in chunk.range(CHUNK_TOKENS, tokens) {
                let (ids, weights) = (&mut scratch.chosen.0[..per_tok], &mut scratch.chosen.1[..per_tok]);
                self.token(step, token, ids, weights);
                if let Some(to) = &self.ids {
                    chunk.ids_mut(step, to, token).copy_from_slice(ids);
                }
                if let Some(to) = &self.weights {
                    chunk.row_mut(step, to, token).copy_from_slice(weights);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(k: usize) -> RouterAttrs {
        RouterAttrs {
            num_experts: 6,
            num_experts_per_tok: k,
            gate: GateKind::Softmax,
            norm_topk_prob: true,
            scale: 1.0,
            selection_bias: None,
            groups: None,
            expert_scale: None,
        }
    }

    #[test]
    fn ties_go_to_the_lower_id_and_nan_ranks_last() {
        let (mut ids, mut weights) = ([0; 4], [0.0; 4]);
        choose(&attrs(4), &[1.0, 3.0, f32::NAN, 3.0, 1.0, 1.0], None, None, &mut ids, &mut weights);
        assert_eq!(ids, [1, 3, 0, 4]);
        assert!(weights.iter().all(|w| w.is_nan()), "{weights:?}");
        let (mut ids, mut weights) = ([0; 6], [0.0; 6]);
        choose(&attrs(6), &[1.0, f32::NAN, f32::NAN, 3.0, 2.0, 1.0], None, None, &mut ids, &mut weights);
        assert_eq!(ids, [3, 4, 0, 5, 1, 2]);
        assert!(weights[0].is_nan());
    }

    #[test]
    fn weights_are_the_renormalised_softmax() {
        let (mut ids, mut weights) = ([0; 2], [0.0; 2]);
        choose(&attrs(2), &[0.0, 2.0, 1.0, -1.0, 0.5, 0.0], None, None, &mut ids, &mut weights);
        let first = 1.0 / (1.0 + (-1.0f32).exp());
        assert_eq!(ids, [1, 2]);
        assert!((weights[0] - first).abs() < 1e-6 && (weights[0] + weights[1] - 1.0).abs() < 1e-6);
    }
}
