//! Products of one row of activations, or of the few that meet an expert, against runs of rows of the matrices, each run one
//! stream of bytes, at whose end the next one's first bytes are asked for. What is fused behind works on the whole run. These are
//! the decode step's, of one sequence or of several.
//!
//! Tiles have one row each. Sums of the group's tile number t stand from t · [`RUN_PANELS`] on.

use super::activations::Tile;
use super::matmul::{MatMuls, Then, Work};
use super::{Step, Worker};
use crate::kernels::{PANEL_ROWS, TILE_TOKENS, flat, flat_mut, wide_flat_mut};
use crate::share::Output;
use moe_run_graph::quant::ActivationPrecision;
use std::ops::Range;

/// Panels in a run, at most.
pub const RUN_PANELS: usize = 16;
/// Rows in a run, at most.
const RUN_ROWS: usize = RUN_PANELS * PANEL_ROWS;
/// Chunks that each of several workers takes on the average: one that is held up leaves the others something to do.
const CHUNKS_PER_WORKER: usize = 8;

/// Panels in a chunk: long runs for the memory, enough chunks for the workers to end together.
pub(super) fn chunk_panels(panels: usize, worker: &Worker<'_>) -> usize {
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

/// A run of panels of a group, and what is read behind it.
pub(super) struct Run<'a> {
    pub which: usize,
    pub group: usize,
    pub panels: Range<usize>,
    /// Its first bytes are asked for.
    pub then: &'a [u8],
    /// All of the group's rows are the first tile's: one row for all of a token's experts.
    pub shared_row: bool,
}

impl MatMuls {
    /// The bytes from a panel of a matrix on, for the expert of a group.
    pub(super) fn run_at(&self, work: &Work<'_>, (group, which, panel): (usize, usize, usize)) -> &[u8] {
        match work.tiles_of(group).first() {
            Some(tile) => self.projections[which].matrix.panel(tile.group, panel).0,
            None => &[],
        }
    }

    /// `sums[to]` = a run of panels of one matrix, times the group's rows.
    fn multiply(&self, step: &Step<'_>, work: &mut Work<'_>, to: usize, run: &Run<'_>) {
        let Run { which, group, panels, then, shared_row } = run;
        let (matrix, tiles) = (&self.projections[*which].matrix, work.tiles_of(*group));
        let (bytes, rows) = matrix.panels_at(tiles[0].group, panels.clone());
        let activations = work.activations;
        let tile = |t: usize| Tile { first: if *shared_row { 0 } else { tiles[t].first }, ..tiles[t] };
        let out = flat_mut(&mut work.sums[to]);
        let done = match (matrix.activation, tiles.len()) {
            (ActivationPrecision::Q8(block), 1) => {
                let x = activations.q8(block, tile(0), matrix.inner, 0);
                step.kernels.dot_rows(matrix.format, bytes, matrix.inner, x, then, &mut out[..rows])
            }
            (ActivationPrecision::Q8(block), n) => {
                let x: [_; TILE_TOKENS] =
                    std::array::from_fn(|t| activations.q8(block, tile(t.min(n - 1)), matrix.inner, 0));
                step.kernels.dot_few(matrix.format, bytes, matrix.inner, &x[..n], then, rows, out, RUN_ROWS);
                true
            }
            (activation, 1) => {
                let x = activations.floats(activation == ActivationPrecision::F16, tile(0), matrix.inner, 0);
                let (x, out) = (&x[..matrix.inner], &mut out[..rows]);
                step.kernels.dot_floats(matrix.format, bytes, x, matrix.wide, then, out)
            }
            _ => false,
        };
        if done {
            for t in 0..tiles.len() {
                let out = &mut flat_mut(&mut work.sums[to])[t * RUN_ROWS..][..rows];
                self.finish_sums(*which, tiles[t].group, panels.start * PANEL_ROWS, out);
            }
            return;
        }
        // Last to first, since each comes to stand in the first place.
        for t in (0..tiles.len()).rev() {
            for (i, panel) in panels.clone().enumerate().rev() {
                self.product(step, work, to, *which, panel, &[tile(t)]);
                work.sums[to][t * RUN_PANELS + i] = work.sums[to][0];
            }
        }
    }

    /// A run of panels of a group through every matrix that goes with it, and what is fused behind.
    pub(super) fn run_of_panels(&self, step: &Step<'_>, work: &mut Work<'_>, run: Run<'_>) {
        let Run { which, group, ref panels, then, shared_row } = run;
        let projection = &self.projections[which];
        let first = panels.start * PANEL_ROWS;
        let count = (panels.end * PANEL_ROWS).min(projection.matrix.rows) - first;
        let gated = matches!(self.then, Then::Gated { .. });
        let next = if gated { self.run_at(work, (group, 1, panels.start)) } else { then };
        self.multiply(step, work, 0, &Run { then: next, panels: panels.clone(), ..run });
        let tiles = work.tiles_of(group);
        for (t, tile) in tiles.iter().enumerate() {
            let pair = work.pairs[tile.first] as usize;
            let sums = &mut flat_mut(&mut work.sums[0])[t * RUN_ROWS..][..count];
            store(step, projection.out.as_ref(), pair, first, sums);
            if let Then::Add { residual, out } = &self.then {
                let residual = &step.row(*residual, pair)[first..first + count];
                sums.iter_mut().zip(residual).for_each(|(sum, r)| *sum += r);
                store(step, Some(out), pair, first, sums);
            }
        }
        let Then::Gated { activated, out } = &self.then else { return };
        self.multiply(step, work, 1, &Run { which: 1, group, panels: panels.clone(), then, shared_row });
        for (t, tile) in tiles.iter().enumerate() {
            let pair = work.pairs[tile.first] as usize;
            let lanes = t * RUN_PANELS..t * RUN_PANELS + panels.len();
            let [gate, up] = &mut *work.sums;
            let (gate, up) = (flat_mut(&mut gate[lanes.clone()]), flat_mut(&mut up[lanes]));
            store(step, self.projections[1].out.as_ref(), pair, first, &up[..count]);
            step.kernels.swiglu_in_place(gate, up);
            store(step, out.as_ref(), pair, first, &up[..count]);
            if activated.is_some() {
                step.kernels.silu_in_place(gate);
                store(step, activated.as_ref(), pair, first, &gate[..count]);
            }
        }
    }

    /// Adds a run of the down-projection of a group's experts to its tokens' sums over experts, `weights` [T, K] being the
    /// router's.
    pub(super) fn combine_run(
        &self,
        step: &Step<'_>,
        work: &mut Work<'_>,
        run: Run<'_>,
        weights: &[f32],
        per_tok: usize,
    ) {
        let (matrix, out) = (&self.projections[0].matrix, self.projections[0].out.as_ref());
        let width = run.panels.len();
        let first = run.panels.start * PANEL_ROWS;
        let count = (run.panels.end * PANEL_ROWS).min(matrix.rows) - first;
        self.multiply(step, work, 0, &run);
        for (t, tile) in work.tiles_of(run.group).iter().enumerate() {
            let sums = &flat(&work.sums[0])[t * RUN_ROWS..][..count];
            let pair = work.pairs[tile.first] as usize;
            store(step, out, pair, first, sums);
            let to = &mut work.combined[pair / per_tok * width..][..width];
            step.kernels.add_scaled_wide(weights[pair], sums, &mut wide_flat_mut(to)[..count]);
        }
    }
}
