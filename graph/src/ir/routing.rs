//! How tokens come to their experts: the attributes of the ops that choose.

use super::graph::WeightId;
use serde::Serialize;

/// How router logits become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GateKind {
    /// softmax over all experts, then the best K.
    Softmax,
    /// sigmoid of each, then the best K.
    Sigmoid,
    /// the best K logits, then softmax over those.
    SoftmaxAfterTopK,
    /// the best K logits; the weight of each is its share of a softmax over those not better than it, m, whose logit s is near:
    /// m − s ≤ 0.02 · max(|s|, m). Phi's sparsemixer as it is without training, its jitter being 0.01.
    SparseMixer,
    /// √softplus of each, then the best K.
    SqrtSoftplus,
}

impl GateKind {
    /// Whether a logit is near another that is not below it: what [`GateKind::SparseMixer`] keeps.
    #[must_use]
    pub fn is_near(logit: f64, best: f64) -> bool {
        best - logit <= 0.02 * logit.abs().max(best)
    }
}

/// What a group of experts is ranked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupScore {
    /// Its largest value.
    Best,
    /// The sum of its two largest values.
    BestTwo,
}

/// Experts in equal runs, of which only the best are chosen from. The values that rank them are gate values, with the
/// selection bias where there is one. Ties go to the lower group, a NaN ranks last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct ExpertGroups {
    /// How many groups there are.
    pub n_group: usize,
    /// How many of them are chosen from.
    pub topk_group: usize,
    /// What ranks a group.
    pub score: GroupScore,
}

/// The attributes of [`Op::Router`](super::Op::Router).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouterAttrs {
    /// E.
    pub num_experts: usize,
    /// K.
    pub num_experts_per_tok: usize,
    /// The gate's function.
    pub gate: GateKind,
    /// Divide the chosen weights by their sum.
    pub norm_topk_prob: bool,
    /// Multiplies the weights at the end.
    pub scale: f32,
    /// Added to the gate values for the choice, not for the weight: `[E]`, F32.
    pub selection_bias: Option<WeightId>,
    /// Only the experts of the best groups are chosen from; `None`: all are.
    pub groups: Option<ExpertGroups>,
    /// Multiplies the weight of each chosen expert, behind everything else: `[E]`, F32.
    pub expert_scale: Option<WeightId>,
}

/// The attributes of [`Op::GivenExperts`](super::Op::GivenExperts).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GivenExpertsAttrs {
    /// E.
    pub num_experts: usize,
    /// K.
    pub num_experts_per_tok: usize,
    /// The gate's function: of all logits, or of each by itself.
    pub gate: GateKind,
    /// Divide the weights by their sum.
    pub norm_topk_prob: bool,
    /// Multiplies the weights at the end.
    pub scale: f32,
    /// Experts that share one of these: an id is divided by it.
    pub divisor: usize,
    /// The ids of each token of the vocabulary, `[vocab, n]`: 32-bit integers, as which a weight in F32 is read, bit by bit. What
    /// is given is then the step's tokens; their ids come best first, by logit: at a tie as they stand in the row, NaN last. An id
    /// beyond E counts as the last.
    pub table: Option<WeightId>,
}
