//! DeltaGates and DeltaRule: a worker takes value heads, and walks their tokens in order, sequence after sequence. A few tokens
//! pass over a part of a head's state together, while it is in the nearest cache: its columns do not mix. That part is a copy,
//! as rows of a whole state are a power of two apart and would fall into few of the cache's sets.

use super::{Launch, Scratch, Step};
use crate::kernels::DeltaTile;
use crate::pool::Worker;
use crate::share::{Input, Output, StateOutput};
use moe_run_graph::ir::DeltaRuleAttrs;
use moe_run_runtime::exp::{exp, sigmoid, softplus};

/// Tokens that pass over a part of a state together.
const TILE: usize = 8;
/// Columns of such a part.
const PART: usize = 64;

/// The launch of DeltaGates.
pub struct DeltaGates {
    /// [T, H].
    pub b: Input,
    /// [T, H·w].
    pub dt: Input,
    /// [H].
    pub a: Box<[f32]>,
    /// [H·w].
    pub dt_bias: Box<[f32]>,
    /// The least that the decay's logarithm comes to.
    pub bound: Option<f32>,
    /// β, if anybody wants it.
    pub beta: Option<Output>,
    /// What is left of the state, if anybody wants it.
    pub decay: Option<Output>,
}

impl Launch for DeltaGates {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        let of_head = self.dt_bias.len() / self.a.len();
        for mut chunk in worker.shares(self.b.rows(step.sizes)) {
            let row = chunk.number();
            if let Some(to) = &self.beta {
                let (b, to) = (step.row(self.b, row), chunk.row_mut(step, to, row));
                b.iter().zip(to).for_each(|(b, to)| *to = sigmoid(*b));
            }
            if let Some(to) = &self.decay {
                let (dt, to) = (step.row(self.dt, row), chunk.row_mut(step, to, row));
                for i in 0..to.len() {
                    let (a, dt) = (self.a[i / of_head], dt[i] + self.dt_bias[i]);
                    to[i] = exp(match self.bound {
                        None => a * softplus(dt),
                        Some(bound) => bound * sigmoid(a * dt),
                    });
                }
            }
        }
    }
}

/// The launch.
pub struct DeltaRule {
    /// Shapes.
    pub attrs: DeltaRuleAttrs,
    /// [T, 2·Hk·dk + Hv·dv].
    pub qkv: Input,
    /// [T, Hv].
    pub beta: Input,
    /// [T, Hv] or [T, Hv·dk].
    pub decay: Input,
    /// [T, Hv·dv], shared by heads.
    pub out: Output,
    /// [Hv, dk, dv] of each sequence, shared by heads.
    pub state: StateOutput,
}

impl DeltaRule {
    /// Floats that a worker needs: q, k, the decay and k · decay of each token of a tile, their values, what they read, and a
    /// part of a state.
    pub fn scratch_elems(attrs: &DeltaRuleAttrs) -> usize {
        (TILE * 4 + PART) * attrs.key_head_dim + 2 * TILE * PART
    }

    /// The q, k, decay and k · decay of a token.
    fn prepare(&self, step: &Step<'_>, token: usize, head: usize, to: &mut [f32]) {
        let (attrs, dk) = (&self.attrs, self.attrs.key_head_dim);
        let (qkv, decays) = (step.row(self.qkv, token), step.row(self.decay, token));
        let at = attrs.key_head(head) * dk;
        let of_head = decays.len() / attrs.num_value_heads;
        let decays = &decays[head * of_head..][..of_head];
        let (q, rest) = to.split_at_mut(dk);
        let (k, rest) = rest.split_at_mut(dk);
        let (decay, decayed_k) = rest.split_at_mut(dk);
        step.kernels.l2_norm(&qkv[at..at + dk], attrs.eps, attrs.scale, q);
        step.kernels.l2_norm(&qkv[attrs.key_width() + at..][..dk], attrs.eps, 1.0, k);
        match decays {
            [one] => decay.fill(*one),
            each => decay.copy_from_slice(each),
        }
        for i in 0..dk {
            decayed_k[i] = k[i] * decay[i];
        }
    }
}

impl Launch for DeltaRule {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, scratch: &mut Scratch) {
        let (attrs, dk, dv) = (&self.attrs, self.attrs.key_head_dim, self.attrs.value_head_dim);
        for mut chunk in worker.shares(attrs.num_value_heads) {
            let head = chunk.number();
            let first_value = 2 * attrs.key_width() + head * dv;
            for (place, tokens) in step.tiles(TILE) {
                if step.position(tokens.start) == 0 {
                    chunk.row_and_state(step, (&self.out, tokens.start), (&self.state, place)).1.fill(0.0);
                }
                let (vectors, rest) = scratch.normed.split_at_mut(TILE * 4 * dk);
                let (values, rest) = rest.split_at_mut(TILE * PART);
                let (read, copy) = rest.split_at_mut(TILE * PART);
                let mut beta = [0.0; TILE];
                for (i, token) in tokens.clone().enumerate() {
                    self.prepare(step, token, head, &mut vectors[i * 4 * dk..][..4 * dk]);
                    beta[i] = step.row(self.beta, token)[head];
                }
                let (vectors, beta) = (&vectors[..tokens.len() * 4 * dk], &beta[..tokens.len()]);
                for part in (0..dv).step_by(PART).map(|column| column..(column + PART).min(dv)) {
                    let width = part.len();
                    for (token, v) in tokens.clone().zip(values.chunks_exact_mut(width)) {
                        v.copy_from_slice(&step.row(self.qkv, token)[first_value..][part.clone()]);
                    }
                    let tile = DeltaTile { vectors, beta, v: &values[..tokens.len() * width] };
                    let read = &mut read[..tokens.len() * width];
                    let (_, state) =
                        chunk.row_and_state(step, (&self.out, tokens.start), (&self.state, place));
                    if tokens.len() == 1 {
                        step.kernels.delta_rule(tile, &mut state[part.start..], dv, read);
                    } else {
                        let copy = &mut copy[..dk * width];
                        for (copy, row) in copy.chunks_exact_mut(width).zip(state.chunks_exact(dv)) {
                            copy.copy_from_slice(&row[part.clone()]);
                        }
                        step.kernels.delta_rule(tile, copy, width, read);
                        for (copy, row) in copy.chunks_exact(width).zip(state.chunks_exact_mut(dv)) {
                            row[part.clone()].copy_from_slice(copy);
                        }
                    }
                    for (token, read) in tokens.clone().zip(read.chunks_exact(width)) {
                        chunk.row_mut(step, &self.out, token)[part.clone()].copy_from_slice(read);
                    }
                }
            }
        }
    }
}
