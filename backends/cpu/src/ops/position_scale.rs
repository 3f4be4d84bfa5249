//! Rows times a factor of their position.

use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output};
use moe_run_graph::ir::PositionScaleAttrs;

/// The launch.
pub struct PositionScale {
    /// [T, n].
    pub x: Input,
    /// The same shape.
    pub out: Output,
    /// The factor's definition.
    pub attrs: PositionScaleAttrs,
}

impl Launch for PositionScale {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        for mut chunk in worker.shares(step.sizes.tokens) {
            let token = chunk.number();
            let out = chunk.row_mut(step, &self.out, token);
            out.copy_from_slice(step.row(self.x, token));
            step.kernels.scale(self.attrs.factor(step.positions[token]), out);
        }
    }
}
