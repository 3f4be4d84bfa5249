//! LayerNorm of whole rows.

use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output};

/// The launch.
pub struct LayerNorm {
    /// [.., weight.len()].
    pub x: Input,
    /// The same shape.
    pub out: Output,
    /// w.
    pub weight: Box<[f32]>,
    /// b.
    pub bias: Option<Box<[f32]>>,
    /// Added to the variance.
    pub eps: f32,
}

impl Launch for LayerNorm {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        let bias = self.bias.as_deref().unwrap_or(&[]);
        for mut chunk in worker.shares(self.out.rows(step.sizes)) {
            let row = chunk.number();
            let (x, out) = (step.row(self.x, row), chunk.row_mut(step, &self.out, row));
            step.kernels.layer_norm(x, &self.weight, bias, self.eps, out);
        }
    }
}
