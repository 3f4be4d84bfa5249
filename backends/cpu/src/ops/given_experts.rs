//! Experts that are given by others' ids, and what the logits weigh them by.

use super::router::{better, sqrt_softplus};
use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output};
use moe_run_graph::ir::{GateKind, GivenExpertsAttrs};

/// The launch.
pub struct GivenExperts {
    /// E, K, gate, divisor.
    pub attrs: GivenExpertsAttrs,
    /// [T, E].
    pub logits: Input,
    /// [T, n], n of at least K; with a table the tokens [T].
    pub from: Input,
    /// The first K ids of each token of the vocabulary.
    pub table: Option<Box<[u32]>>,
    /// [T, K], if anybody wants them.
    pub ids: Option<Output>,
    /// [T, K], if anybody wants them.
    pub weights: Option<Output>,
}

impl GivenExperts {
    /// A token's ids, best first.
    fn look_up(&self, table: &[u32], token: usize, logits: &[f32], ids: &mut Vec<u32>) {
        let k = self.attrs.num_experts_per_tok;
        ids.clear();
        for id in &table[token * k..(token + 1) * k] {
            let logit = |id: u32| logits[id as usize / self.attrs.divisor];
            let at = ids.iter().position(|other| better(logit(*id), logit(*other)));
            ids.insert(at.unwrap_or(ids.len()), *id);
        }
    }

    /// The weights of the experts `from`, each divided by the divisor, in the place of these.
    fn weigh(&self, logits: &[f32], from: &[u32], weights: &mut [f32]) {
        let attrs = &self.attrs;
        let logit = |e: u32| f64::from(logits[e as usize]);
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let gate = |from: u32| match attrs.gate {
            GateKind::Sigmoid => 1.0 / (1.0 + (-logit(from / attrs.divisor as u32)).exp()),
            GateKind::SqrtSoftplus => sqrt_softplus(logit(from / attrs.divisor as u32)),
            GateKind::Softmax | GateKind::SoftmaxAfterTopK | GateKind::SparseMixer => {
                (logit(from / attrs.divisor as u32) - max).exp()
            }
        };
        // Of a softmax the sum over all cancels where the chosen are to sum to 1.
        let divisor = match attrs.gate {
            _ if attrs.norm_topk_prob => from.iter().map(|from| gate(*from)).sum(),
            GateKind::Sigmoid | GateKind::SqrtSoftplus => 1.0,
            GateKind::Softmax | GateKind::SoftmaxAfterTopK | GateKind::SparseMixer => {
                logits.iter().map(|l| (f64::from(*l) - max).exp()).sum()
            }
        };
        for (from, weight) in from.iter().zip(weights) {
            *weight = (gate(*from) / divisor * f64::from(attrs.scale)) as f32;
        }
    }
}

impl Launch for GivenExperts {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        let mut looked_up = Vec::new();
        for mut chunk in worker.shares(step.sizes.tokens) {
            let token = chunk.number();
            let given = step.ids(self.from, token..token + 1);
            let from = match &self.table {
                None => &given[..self.attrs.num_experts_per_tok],
                Some(table) => {
                    self.look_up(table, given[0] as usize, step.row(self.logits, token), &mut looked_up);
                    &looked_up[..]
                }
            };
            if let Some(to) = &self.ids {
                for (id, from) in chunk.ids_mut(step, to, token).iter_mut().zip(from) {
                    *id = from / self.attrs.divisor as u32;
                }
            }
            if let Some(to) = &self.weights {
                self.weigh(step.row(self.logits, token), from, chunk.row_mut(step, to, token));
            }
        }
    }
}
