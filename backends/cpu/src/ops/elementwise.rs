//! The small ops as launches of their own: Add, Mul, GatedAct, Slice, GetRows, ExpertCombine. Groups have some built in.

use super::{Launch, Scratch, Step};
use crate::kernels::wide_flat_mut;
use crate::pool::Worker;
use crate::share::{Input, Output};
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
    pub a: Input,
    /// Right.
    pub b: Input,
    /// Result.
    pub out: Output,
}

impl Launch for Elementwise {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        for mut chunk in worker.shares(self.out.rows(step.sizes)) {
            let row = chunk.number();
            let (a, b) = (step.row(self.a, row), step.row(self.b, row));
            let out = chunk.row_mut(step, &self.out, row);
            match self.op {
                Binary::Add => step.kernels.add(a, b, out),
                Binary::Mul => a.iter().zip(b).zip(out).for_each(|((a, b), out)| *out = a * b),
            }
        }
    }
}

/// act(gate), and act(gate) · up.
pub struct GatedAct {
    /// act.
    pub activation: ActivationFn,
    /// The gate.
    pub gate: Input,
    /// What it lets through.
    pub up: Input,
    /// act(gate), if anybody wants it.
    pub activated: Option<Output>,
    /// The product, if anybody wants it.
    pub out: Option<Output>,
}

impl Launch for GatedAct {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        for mut chunk in worker.shares(self.gate.rows(step.sizes)) {
            let row = chunk.number();
            let (gate, up) = (step.row(self.gate, row), step.row(self.up, row));
            if let Some(to) = &self.activated {
                step.kernels.activate(self.activation, gate, chunk.row_mut(step, to, row));
            }
            if let Some(to) = &self.out {
                step.kernels.gate(self.activation, gate, up, chunk.row_mut(step, to, row));
            }
        }
    }
}

/// Some elements of each head.
pub struct Slice {
    /// Where from.
    pub x: Input,
    /// Where to.
    pub out: Output,
    /// Elements of a head.
    pub width: usize,
    /// Which of them.
    pub part: Range<usize>,
}

impl Launch for Slice {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        for mut chunk in worker.shares(self.out.rows(step.sizes)) {
            let row = chunk.number();
            let (x, out) = (step.row(self.x, row), chunk.row_mut(step, &self.out, row));
            for (head, out) in x.chunks_exact(self.width).zip(out.chunks_exact_mut(self.part.len())) {
                out.copy_from_slice(&head[self.part.clone()]);
            }
        }
    }
}

/// Chosen rows: x [T, D], ids [R] → [R, D].
pub struct GetRows {
    /// Where from.
    pub x: Input,
    /// Which.
    pub ids: Input,
    /// Where to.
    pub out: Output,
}

impl Launch for GetRows {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        for mut chunk in worker.shares(self.out.rows(step.sizes)) {
            let row = chunk.number();
            let from = step.ids(self.ids, row..row + 1)[0] as usize;
            chunk.row_mut(step, &self.out, row).copy_from_slice(step.row(self.x, from));
        }
    }
}

/// Σ_k weight_k · y_k, k ascending: y [T, K, D], weights [T, K] → [T, D].
pub struct ExpertCombine {
    /// The experts' results.
    pub y: Input,
    /// Their weights.
    pub weights: Input,
    /// The sum.
    pub out: Output,
}

impl Launch for ExpertCombine {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, scratch: &mut Scratch) {
        let sums = wide_flat_mut(&mut scratch.combined);
        for mut chunk in worker.shares(self.out.rows(step.sizes)) {
            let row = chunk.number();
            let (weights, y) = (step.row(self.weights, row), step.row(self.y, row));
            let out = chunk.row_mut(step, &self.out, row);
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
