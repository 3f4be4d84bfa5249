//! The ids that an operation holds, one after another: what a part of a graph that has weights and states of its own numbers
//! anew. Operands are no part of it: values keep their ids.

use super::graph::{StateId, WeightId};
use super::op::Op;

impl Op {
    /// Shows every weight and every state that the attributes name, to be read or replaced.
    pub fn for_each_id(
        &mut self,
        weight: &mut dyn FnMut(&mut WeightId),
        state: &mut dyn FnMut(&mut StateId),
    ) {
        match self {
            Op::Embed { table, scale: _ } => weight(&mut table.tensor),
            Op::RmsNorm { weight: w, eps: _, heads: _ } => w.iter_mut().for_each(weight),
            Op::LayerNorm { weight: w, bias, eps: _ } => {
                weight(w);
                bias.iter_mut().for_each(weight);
            }
            Op::HeadMatMul { weight: w, transposed: _ } => weight(&mut w.tensor),
            Op::MatMul { weight: w, bias, scale: _ } | Op::ExpertMatMul { weight: w, bias } => {
                weight(&mut w.tensor);
                bias.iter_mut().for_each(weight);
            }
            Op::KvWrite { key, value } => {
                state(key);
                value.iter_mut().for_each(state);
            }
            Op::Attention(a) | Op::AttentionScores(a) | Op::AttentionSoftmax(a) => {
                a.sinks.iter_mut().for_each(weight);
            }
            Op::Router(r) => {
                r.selection_bias.iter_mut().for_each(&mut *weight);
                r.expert_scale.iter_mut().for_each(weight);
            }
            Op::CausalConv(c) => {
                weight(&mut c.weight);
                c.bias.iter_mut().for_each(weight);
                state(&mut c.state);
            }
            Op::DeltaGates { a, dt_bias, bound: _ } => {
                weight(a);
                weight(dt_bias);
            }
            Op::GivenExperts(g) => g.table.iter_mut().for_each(weight),
            Op::DeltaRule(d) => state(&mut d.state),
            Op::SsmScan(s) => {
                weight(&mut s.a);
                weight(&mut s.d);
                weight(&mut s.dt_bias);
                state(&mut s.state);
            }
            Op::HyperGates(h) => {
                weight(&mut h.scale);
                weight(&mut h.base);
            }
            Op::Compress(c) => {
                weight(&mut c.bias);
                state(&mut c.state);
            }
            Op::CompressedAttention(a) => a.sinks.iter_mut().for_each(weight),
            Op::Rope { table: _, pairing: _, heads: _ }
            | Op::PositionScale(_)
            | Op::IndexScores(_)
            | Op::IndexSelect { top_k: _, every: _ }
            | Op::HyperConnect { streams: _ }
            | Op::GatedAct { activation: _ }
            | Op::ExpertCombine
            | Op::Add
            | Op::Mul
            | Op::MulHeads
            | Op::Pointwise { function: _ }
            | Op::Concat { heads: _ }
            | Op::Slice { heads: _, start: _, len: _ }
            | Op::GetRows
            | Op::Tap { stage: _ } => {}
        }
    }
}
