//! The small ops as launches of their own: Add, Mul, GatedAct, Slice, GetRows, ExpertCombine. Groups have some built in.

use super::{Launch, Scratch, Step};
use crate::kernels::wide_flat_mut;
use crate::memory::Val;
use crate::pool::Worker;
use moe_run_graph::ir::ActivationFn;
use std::ops::Range;

/// Which function of two rows.
pub enum Binary {
    /// a + b.
    Add,
    /// a · b.
    Mul,
}

/// a ∘ b, element by element.
pub struct Elementwise {
    /// The function.
    pub op: Binary,
    /// Left.
    pub a: Val,
    /// Right.
    pub b: Val,
    /// Result.
    pub out: Val,
}

impl Launch for Elementwise {
    fn run(&self, step: &Step<'_>, worker: &Worker<'_>, _: &mut Scratch) {
        for row in worker.chunks(self.out.lead.of(step.sizes)) {
            // SAFETY: the row is this chunk's; inputs are older than the last barrier.
            unsafe {
                let (a, b) = (step.arena.rows(self.a, row..row + 1), step.arena.rows(self.b, row..row + 1));
                let out = step.arena.rows_mut(self.out, row..row + 1);
                match self.op {
                    Binary::Add => step.kernels.add(a, b, out),
                    Binary::Mul => a.iter().zip(b).zip(out).for_each(|((a, b), out)| *out = a * b),
                }
            }
        }
    }
}

/// act(gate), and act(gate) · up.
pub struct GatedAct {
    /// act.
    pub activation: ActivationFn,
    /// The gate.
    pub gate: Val,
    /// What it lets through.
    pub up: Val,
    /// act(gate), if anybody wants it.
    pub activated: Option<Val>,
    /// The product, if anybody wants it.
    pub out: Option<Val>,
}

impl Launch for GatedAct {
    fn run(&self, step: &Step<'_>, worker: &Worker<'_>, _: &mut Scratch) {
        for row in worker.chunks(self.gate.lead.of(step.sizes)) {
            // SAFETY: the row is this chunk's; inputs are older than the last barrier.
            unsafe {
                let (gate, up) =
                    (step.arena.rows(self.gate, row..row + 1), step.arena.rows(self.up, row..row + 1));
                if let Some(to) = self.activated {
                    step.kernels.activate(self.activation, gate, step.arena.rows_mut(to, row..row + 1));
                }
                if let Some(to) = self.out {
                    step.kernels.gate(self.activation, gate, up, step.arena.rows_mut(to, row..row + 1));
                }
            }
        }
    }
}

/// Some elements of each head.
pub struct Slice {
    /// Where from.
    pub x: Val,
    /// Where to.
    pub out: Val,
    /// Elements of a head.
    pub width: usize,
    /// Which of them.
    pub part: Range<usize>,
}

impl Launch for Slice {
    fn run(&self, step: &Step<'_>, worker: &Worker<'_>, _: &mut Scratch) {
        for row in worker.chunks(self.out.lead.of(step.sizes)) {
            // SAFETY: the row is this chunk's; inputs are older than the last barrier.
            let (x, out) = unsafe {
                (step.arena.rows(self.x, row..row + 1), step.arena.rows_mut(self.out, row..row + 1))
            };
            for (head, out) in x.chunks_exact(self.width).zip(out.chunks_exact_mut(self.part.len())) {
                out.copy_from_slice(&head[self.part.clone()]);
            }
        }
    }
}

/// Chosen rows: x [T, D], ids [R] → [R, D].
pub struct GetRows {
    /// Where from.
    pub x: Val,
    /// Which.
    pub ids: Val,
    /// Where to.
    pub out: Val,
}

impl Launch for GetRows {
    fn run(&self, step: &Step<'_>, worker: &Worker<'_>, _: &mut Scratch) {
        for row in worker.chunks(self.out.lead.of(step.sizes)) {
            // SAFETY: the row is this chunk's; inputs are older than the last barrier.
            unsafe {
                let from = step.arena.ids(self.ids, row..row + 1)[0] as usize;
                let out = step.arena.rows_mut(self.out, row..row + 1);
                out.copy_from_slice(step.arena.rows(self.x, from..from + 1));
            }
        }
    }
}

/// Σ_k weight_k · y_k, k ascending: y [T, K, D], weights [T, K] → [T, D].
pub struct ExpertCombine {
    /// The experts' results.
    pub y: Val,
    /// Their weights.
    pub weights: Val,
    /// The sum.
    pub out: Val,
}

impl Launch for ExpertCombine {
    fn run(&self, step: &Step<'_>, worker: &Worker<'_>, scratch: &mut Scratch) {
        let sums = wide_flat_mut(&mut scratch.combined);
        for row in worker.chunks(self.out.lead.of(step.sizes)) {
            // SAFETY: the row is this chunk's; inputs are older than the last barrier.
            unsafe {
                let out = step.arena.rows_mut(self.out, row..row + 1);
                let weights = step.arena.rows(self.weights, row..row + 1);
                let y = step.arena.rows(self.y, row..row + 1);
                let (width, at_once) = (out.len(), sums.len());
                for (i, out) in out.chunks_mut(at_once).enumerate() {
                    let sums = &mut sums[..out.len()];
                    sums.fill(0.0);
                    for (weight, y) in weights.iter().zip(y.chunks_exact(width)) {
                        step.kernels.add_scaled_wide(*weight, &y[i * at_once..][..out.len()], sums);
                    }
                    step.kernels.narrow(sums, out);
                }
            }
        }
    }
}
