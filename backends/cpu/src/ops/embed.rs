//! Embed: rows of the table, decoded, times a scale where there is one: ids [T] → [T, D].

use super::weights::Matrix;
use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output};

/// The launch.
pub struct Embed {
    /// [vocab, D].
    pub table: Matrix,
    /// Multiplies each element.
    pub scale: Option<f32>,
    /// [T].
    pub ids: Input,
    /// [T, D].
    pub out: Output,
}

impl Launch for Embed {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, _: &mut Scratch) {
        for mut chunk in worker.shares(step.sizes.tokens) {
            let token = chunk.number();
            let id = step.ids(self.ids, token..token + 1)[0] as usize;
            let out = chunk.row_mut(step, &self.out, token);
            self.table.format.decode_row(self.table.row(id), out);
            if let Some(scale) = self.scale {
                out.iter_mut().for_each(|x| *x *= scale);
            }
        }
    }
}
