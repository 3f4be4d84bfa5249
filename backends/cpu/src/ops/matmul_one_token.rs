//! The decode step's products: one row of activations, which every worker has prepared for itself, against runs of rows of
//! the matrices, each run one stream of bytes, at whose end the next one's first bytes are asked for. What is fused behind
//! works on the whole run.

use super::activations::Tile;
use super::matmul::{MatMuls, Then, Work};
use super::{Step, Worker};
use crate::kernels::{PANEL_ROWS, WideLanes, flat, flat_mut, wide_flat_mut};
use crate::share::Output;
use moe_run_graph::quant::ActivationPrecision;
use std::ops::Range;

/// Panels in a run, at most.
pub const RUN_PANELS: usize = 16;
/// Chunks that each of several workers takes on the average: one that is held up leaves the others something to do.
const CHUNKS_PER_WORKER: usize = 8;

/// Panels in a chunk: long runs for the memory, enough chunks for the workers to end together.
fn chunk_panels(panels: usize, worker: &Worker<'_>) -> usize {
    match worker.threads() {
        1 => RUN_PANELS,
        threads => (panels / (threads * CHUNKS_PER_WORKER)).clamp(1, RUN_PANELS),
    }
}

/// Copies a run's sums to a row of `to`, where anybody wants them.
fn store(step: &Step<'_>, to: Option<&Output>, row: usize, first: usize, sums: &[f32]) {
    if let Some(to) = to {
        MatMuls::put(step, to, row, first, sums);
    }
}

impl MatMuls {
    /// This worker's share of a one-token step.
    pub(super) fn one_token(
        &self,
        step: &Step<'_>,
        worker: &mut Worker<'_>,
        work: &mut Work<'_>,
        shared_row: bool,
    ) {
        if matches!(self.then, Then::Combine { .. }) {
            let panels = self.projections[0].matrix.panels();
            let size = chunk_panels(panels, worker);
            for chunk in worker.chunks(panels.div_ceil(size)) {
                let next = (chunk + worker.threads()) * size;
                let run = chunk * size..(chunk * size + size).min(panels);
                self.combine_one(step, work, run, next, shared_row);
            }
            return;
        }
        let per_group = self.panels_per_group();
        let total = per_group * work.groups();
        let size = chunk_panels(total, worker);
        for chunk in worker.chunks(total.div_ceil(size)) {
            let (mut at, end) = (chunk * size, (chunk * size + size).min(total));
            while at < end {
                let (group, which, panel) = self.locate(at);
                let run = panel..(panel + end - at).min(self.projections[which].matrix.panels());
                at += run.len();
                // Workers that keep pace take chunks in turns.
                let next = if at < end { at } else { (chunk + worker.threads()) * size };
                let then = if next < total { self.run_at(work, self.locate(next)) } else { &[] };
                self.run_of_panels(step, work, which, run, group, then, shared_row);
            }
        }
    }

    /// The bytes from a panel of a matrix on, for the expert of a group.
    fn run_at(&self, work: &Work<'_>, (group, which, panel): (usize, usize, usize)) -> &[u8] {
        match work.tiles_of(group) {
            [tile] => self.projections[which].matrix.panel(tile.group, panel).0,
            _ => &[],
        }
    }

    /// `sums[to]` = a run of panels of one matrix, times the row; `then` is read next.
    fn multiply(
        &self,
        step: &Step<'_>,
        work: &mut Work<'_>,
        to: usize,
        which: usize,
        tile: Tile,
        panels: Range<usize>,
        then: &[u8],
        shared_row: bool,
    ) {
        let matrix = &self.projections[which].matrix;
        let (bytes, rows) = matrix.panels_at(tile.group, panels.clone());
        let tile = if shared_row { Tile { first: 0, ..tile } } else { tile };
        let out = &mut flat_mut(&mut work.sums[to])[..rows];
        let done = match matrix.activation {
            ActivationPrecision::Q8(block) => {
                let x = work.activations.q8(block, tile, matrix.inner, 0);
                step.kernels.dot_rows(matrix.format, bytes, matrix.inner, x, then, out)
            }
            activation => {
                let x =
                    work.activations.floats(activation == ActivationPrecision::F16, tile, matrix.inner, 0);
                step.kernels.dot_floats(matrix.format, bytes, &x[..matrix.inner], matrix.wide, then, out)
            }
        };
        if done {
            return self.finish_sums(which, tile.group, panels.start * PANEL_ROWS, out);
        }
        // Last to first, since each comes to stand in the first place.
        for (i, panel) in panels.enumerate().rev() {
            self.product(step, work, to, which, panel, &[tile]);
            work.sums[to][i] = work.sums[to][0];
        }
    }

    /// A run of panels of a group through every matrix that goes with it, and what is fused behind; `next` is read next.
    fn run_of_panels(
        &self,
        step: &Step<'_>,
        work: &mut Work<'_>,
        which: usize,
        panels: Range<usize>,
        group: usize,
        next: &[u8],
        shared_row: bool,
    ) {
        let [tile] = *work.tiles_of(group) else { return };
        let pair = work.pairs[tile.first] as usize;
        let projection = &self.projections[which];
        let first = panels.start * PANEL_ROWS;
        let count = (panels.end * PANEL_ROWS).min(projection.matrix.rows) - first;
        let gated = matches!(self.then, Then::Gated { .. });
        let then = if gated { self.run_at(work, (group, 1, panels.start)) } else { next };
        self.multiply(step, work, 0, which, tile, panels.clone(), then, shared_row);
        store(step, projection.out.as_ref(), pair, first, &flat(&work.sums[0])[..count]);
        match &self.then {
            Then::Nothing | Then::Combine { .. } => {}
            Then::Add { residual, out } => {
                let residual = &step.row(*residual, pair)[first..first + count];
                let sums = &mut flat_mut(&mut work.sums[0])[..count];
                sums.iter_mut().zip(residual).for_each(|(sum, r)| *sum += r);
                store(step, Some(out), pair, first, sums);
            }
            Then::Gated { activated, out } => {
                self.multiply(step, work, 1, 1, tile, panels.clone(), next, shared_row);
                store(step, self.projections[1].out.as_ref(), pair, first, &flat(&work.sums[1])[..count]);
                let [gate, up] = &mut *work.sums;
                let (gate, up) = (flat_mut(&mut gate[..panels.len()]), flat_mut(&mut up[..panels.len()]));
                step.kernels.swiglu_in_place(gate, up);
                store(step, out.as_ref(), pair, first, &up[..count]);
                if activated.is_some() {
                    step.kernels.silu_in_place(gate);
                    store(step, activated.as_ref(), pair, first, &gate[..count]);
                }
            }
        }
    }

    /// Panels `panels` of the down-projection of every chosen expert, summed with the router's weights; panel `next` is where
    /// this worker likely goes on.
    fn combine_one(
        &self,
        step: &Step<'_>,
        work: &mut Work<'_>,
        panels: Range<usize>,
        next: usize,
        shared_row: bool,
    ) {
        let (Then::Combine { weights, .. }, Some((per_tok, ..))) = (&self.then, &self.experts) else {
            return;
        };
        let (matrix, out) = (&self.projections[0].matrix, self.projections[0].out.as_ref());
        let weights = step.rows(weights.with_width(1), 0..*per_tok);
        work.combined[..panels.len()].fill(WideLanes([0.0; PANEL_ROWS]));
        let first = panels.start * PANEL_ROWS;
        let count = (panels.end * PANEL_ROWS).min(matrix.rows) - first;
        for group in 0..work.groups() {
            let [tile] = *work.tiles_of(group) else { return };
            let then = match group + 1 {
                behind if behind < work.groups() => self.run_at(work, (behind, 0, panels.start)),
                _ if next < matrix.panels() => self.run_at(work, (0, 0, next)),
                _ => &[],
            };
            self.multiply(step, work, 0, 0, tile, panels.clone(), then, shared_row);
            let sums = &flat(&work.sums[0])[..count];
            let pair = work.pairs[tile.first] as usize;
            store(step, out, pair, first, sums);
            step.kernels.add_scaled_wide(weights[pair], sums, &mut wide_flat_mut(work.combined)[..count]);
        }
        self.store_combined(step, work, panels);
    }
}
