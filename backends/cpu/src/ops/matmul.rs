//! Products of one input with one or more matrices, and what is fused around them: row choice and RMSNorm before;
//! bias, residual, SwiGLU, or the experts' weighted sum behind. MatMul and ExpertMatMul are the same launch: a dense
//! product has one group that holds every row.
//!
//! x [rows, inner] (or [rows, K, inner]) · Wᵀ → [rows, out] (or [rows, K, out]).
//! Chunks are runs of 16-row panels. A panel is unpacked once for all tiles of its group; where few rows meet it, they go through
//! whole rows of weights instead (`matmul_few_tokens`), with the same bits in 8 bits.

use super::activations::{Kinds, Tile};
use super::matmul_few_tokens::{Run, chunk_panels};
use super::router::Route;
use super::weights::Matrix;
use super::{Launch, Scratch, Step};
use crate::kernels::{Lanes, PANEL_ROWS, Panel, PanelF32, STEP_ELEMS, WideLanes, flat_mut, wide_flat};
use crate::pool::Worker;
use crate::share::{Input, Output};
use crate::tiles::{FilledTiles, TileMut};
use moe_run_graph::ir::StepSizes;
use moe_run_graph::quant::{ActBlock, ActivationPrecision};

/// Panels that a chunk of a fused down-projection takes: its sums over experts stay in the second-level cache.
pub const COMBINE_PANELS: usize = 4;
/// Columns of weighted sums that are stored at once, at most.
const MAX_COMBINED: usize = {
    let panels = if super::RUN_PANELS > COMBINE_PANELS { super::RUN_PANELS } else { COMBINE_PANELS };
    panels * PANEL_ROWS
};
/// The most tokens of a step whose chunks are long runs.
const DECODE_TOKENS: usize = 64;
/// Panels in a chunk of a prompt's product: the group's activations are read from the cache for all but the first.
const PROMPT_PANELS: usize = 4;

/// RMSNorm in front of the product.
pub struct Norm {
    /// w [inner].
    pub weight: Box<[f32]>,
    /// Added to the mean square.
    pub eps: f32,
    /// Where the normed rows go, if anybody wants them.
    pub out: Option<Output>,
}

/// One matrix of the launch.
pub struct Projection {
    /// W.
    pub matrix: Matrix,
    /// Multiplies the product.
    pub scale: Option<f32>,
    /// [groups, out], added at the end.
    pub bias: Option<Box<[f32]>>,
    /// Where the product goes, if anybody wants it.
    pub out: Option<Output>,
}

/// Which expert each row meets.
#[expect(clippy::large_enum_variant, reason = "one a launch, made when it is compiled")]
pub enum Experts {
    /// The choice is stored.
    Chosen {
        /// [T, K].
        ids: Input,
    },
    /// The launch chooses.
    Route(Route),
    /// Every row meets all of them, each its own part of the row: heads.
    All,
}

/// What becomes of the products.
pub enum Then {
    /// They are the result.
    Nothing,
    /// residual + product.
    Add {
        /// [rows, out].
        residual: Input,
        /// [rows, out].
        out: Output,
    },
    /// silu(first) · second.
    Gated {
        /// silu(first), if anybody wants it.
        activated: Option<Output>,
        /// The result, if anybody wants it.
        out: Option<Output>,
    },
    /// Σ_k weight_k · product_k, and a residual.
    Combine {
        /// [T, K].
        weights: Input,
        /// The sum alone, if anybody wants it.
        combined: Option<Output>,
        /// residual and result.
        add: Option<(Input, Output)>,
    },
}

impl Then {
    /// For matrices of so many rows: an expert's result is a row.
    pub fn with_width(self, rows: usize) -> Then {
        let wide = |out: Output| out.with_width(rows);
        match self {
            Then::Add { residual, out } => Then::Add { residual: residual.with_width(rows), out: wide(out) },
            Then::Gated { activated, out } => {
                Then::Gated { activated: activated.map(wide), out: out.map(wide) }
            }
            Then::Nothing | Then::Combine { .. } => self,
        }
    }
}

/// The launch.
pub struct MatMuls {
    /// The input.
    pub x: Input,
    /// Rows of `x` to take first: ids [R] and where the chosen rows go, if anybody wants them.
    pub pick: Option<(Input, Option<Output>)>,
    /// Before the product.
    pub norm: Option<Norm>,
    /// K and the choice; `None` for a dense product.
    pub experts: Option<(usize, usize, Experts)>,
    /// The input has a row for each expert: [T, K, inner].
    pub row_per_expert: bool,
    /// Matrices with equal `inner`; with [`Then::Gated`] exactly two of equal shape, else at least one.
    pub projections: Vec<Projection>,
    /// Roundings that they read.
    pub kinds: Kinds,
    /// Behind them.
    pub then: Then,
}

impl MatMuls {
    /// Slots in a step of the given number of rows.
    fn slots(&self, rows: usize) -> usize {
        rows * self.experts.as_ref().map_or(1, |(per_tok, ..)| *per_tok)
    }

    /// Slots in the largest step.
    pub fn max_slots(&self, max: StepSizes) -> usize {
        self.slots(self.rows(max))
    }

    fn inner(&self) -> usize {
        self.projections[0].matrix.inner
    }

    fn is_in_8_bits(&self) -> bool {
        self.projections.iter().all(|p| matches!(p.matrix.activation, ActivationPrecision::Q8(_)))
    }

    /// Up to how many rows of a group go through whole rows of weights, each a tile of its own.
    fn few_tokens(&self, step: &Step<'_>) -> usize {
        let of_one = |projection: &Projection| match projection.matrix.activation {
            // Blocks of another length than the format's own are for panels alone.
            ActivationPrecision::Q8(block)
                if (block == ActBlock::X256) == projection.matrix.format.is_super_block() =>
            {
                step.kernels.few_tokens(projection.matrix.format)
            }
            _ => 1,
        };
        self.projections.iter().map(of_one).min().unwrap_or(1)
    }

    fn rows(&self, sizes: StepSizes) -> usize {
        self.pick.as_ref().map_or(self.x, |(ids, _)| *ids).rows(sizes)
            * if self.experts.is_some() { 1 } else { self.x.width() / self.inner() }
    }

    /// Columns of a row, copied.
    #[inline]
    pub(super) fn put(step: &Step<'_>, to: &Output, row: usize, first: usize, x: &[f32]) {
        // SAFETY: whoever asks has these columns of the row alone. Panels, and runs of panels, of a group belong to one
        // chunk, and a row of a result to one group; rows that are picked, normed or routed belong to the chunk of their
        // tile, or in a one-token step to the first worker.
        let to = unsafe { to.part_mut(step, row, first..first + x.len()) };
        match (to.first_chunk_mut::<PANEL_ROWS>(), x.first_chunk::<PANEL_ROWS>()) {
            // A panel's results, by far the most frequent: one vector.
            (Some(to), Some(panel)) if x.len() == PANEL_ROWS => *to = *panel,
            _ => to.copy_from_slice(x),
        }
    }

    /// Row `row` of the input, picked and normed; with `write`, stored where it is wanted on the way.
    fn input<'a>(&self, step: &Step<'a>, row: usize, normed: &'a mut [f32], write: bool) -> &'a [f32] {
        let x = self.x.with_width(self.inner());
        let x = match &self.pick {
            None => step.row(x, row),
            Some((ids, out)) => {
                let x = step.row(x, step.ids(*ids, row..row + 1)[0] as usize);
                if let (Some(out), true) = (out, write) {
                    Self::put(step, out, row, 0, x);
                }
                x
            }
        };
        let Some(norm) = &self.norm else { return x };
        step.kernels.rms_norm(x, &norm.weight, norm.eps, normed);
        if let (Some(out), true) = (&norm.out, write) {
            Self::put(step, out, row, 0, normed);
        }
        normed
    }

    /// Panels of all matrices (of the pair, with a gate) that a group has.
    pub(super) fn panels_per_group(&self) -> usize {
        match &self.then {
            Then::Gated { .. } => self.projections[0].matrix.panels(),
            _ => self.projections.iter().map(|p| p.matrix.panels()).sum(),
        }
    }

    /// The group, matrix and panel of number `at` when all stand in one row: for each group, each matrix's panels.
    pub(super) fn locate(&self, at: usize) -> (usize, usize, usize) {
        let per_group = self.panels_per_group();
        let (group, mut panel, mut which) = (at / per_group, at % per_group, 0);
        while panel >= self.projections[which].matrix.panels() {
            panel -= self.projections[which].matrix.panels();
            which += 1;
        }
        (group, which, panel)
    }

    /// Fills a tile of slots from `first` on.
    fn prepare(
        &self,
        step: &Step<'_>,
        mut to: TileMut<'_>,
        first: usize,
        pairs: &[u32],
        scratch: RowScratch<'_>,
        write: bool,
    ) {
        let per_row = match &self.experts {
            Some((per_tok, ..)) if !self.row_per_expert => *per_tok,
            _ => 1,
        };
        let RowScratch { normed, row } = scratch;
        for lane in 0..to.tokens {
            let at = pairs[first + lane] as usize / per_row;
            let x = self.input(step, at, &mut normed[..self.inner()], write);
            to.put(step.kernels, lane, x, row);
        }
    }

    /// `sums[to][local slot] = panel of W · slots of the group`, the slots' activations being those of `tiles`.
    pub(super) fn product(
        &self,
        step: &Step<'_>,
        work: &mut Work<'_>,
        to: usize,
        which: usize,
        panel: usize,
        tiles: &[Tile],
    ) {
        let matrix = &self.projections[which].matrix;
        let inner = matrix.inner;
        let sums = &mut work.sums[to];
        let slots = slots_of(tiles).len();
        let (bytes, rows) = matrix.panel(tiles[0].group, panel);
        sums[..slots].fill(Lanes([0.0; PANEL_ROWS]));
        if matrix.wide {
            work.wide_sums[..slots].fill(WideLanes([0.0; PANEL_ROWS]));
        }
        let behind = matrix.behind(tiles[0].group, panel);
        let per_step = STEP_ELEMS / matrix.format.block_elems() * matrix.format.block_bytes();
        for i in 0..inner.div_ceil(STEP_ELEMS) {
            let elems = STEP_ELEMS.min(inner - i * STEP_ELEMS);
            let bytes = &bytes[i * per_step..];
            let stride = matrix.row_bytes();
            let part = PANEL_ROWS * per_step;
            step.kernels.prefetch(&behind[(i * part).min(behind.len())..((i + 1) * part).min(behind.len())]);
            match (matrix.layout, matrix.activation) {
                (Some(layout), ActivationPrecision::Q8(block)) => {
                    step.kernels.unpack(matrix.format, bytes, stride, rows, elems, work.panel);
                    let mut done = 0;
                    for tile in tiles {
                        let out = &mut sums[done..done + tile.tokens];
                        let x = work.activations.q8(block, *tile, inner, i);
                        step.kernels.mul_q8(layout, work.panel, elems / layout.sub_elems, x, out);
                        done += tile.tokens;
                    }
                }
                (_, activation) => {
                    step.kernels.unpack_f32(matrix.format, bytes, stride, rows, elems, work.panel, work.wide);
                    let mut done = 0;
                    for tile in tiles {
                        let out = &mut sums[done..done + tile.tokens];
                        let f16 = activation == ActivationPrecision::F16;
                        let x = work.activations.floats(f16, *tile, inner, i);
                        let (w, x) = (&work.wide.w[..elems], &x[..elems * tile.tokens]);
                        if matrix.wide {
                            step.kernels.mul_wide(w, x, &mut work.wide_sums[done..done + tile.tokens]);
                        } else {
                            step.kernels.mul_f32(w, x, out);
                        }
                        done += tile.tokens;
                    }
                }
            }
        }
        if matrix.wide {
            step.kernels.narrow(wide_flat(&work.wide_sums[..slots]), flat_mut(&mut sums[..slots]));
        }
        let projection = &self.projections[which];
        if projection.scale.is_some() || projection.bias.is_some() {
            for sum in &mut sums[..slots] {
                self.finish_sums(which, tiles[0].group, panel * PANEL_ROWS, &mut sum.0);
            }
        }
    }

    /// Scale and bias of rows from `first` on.
    pub(super) fn finish_sums(&self, which: usize, group: usize, first: usize, sums: &mut [f32]) {
        let projection = &self.projections[which];
        if let Some(scale) = projection.scale {
            sums.iter_mut().for_each(|x| *x *= scale);
        }
        if let Some(bias) = &projection.bias {
            let rows = projection.matrix.rows;
            let bias = &bias[group * rows..][first..rows];
            sums.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
    }

    /// Copies a group's sums of a panel to rows of `to`, where anybody wants them.
    fn store(
        &self,
        step: &Step<'_>,
        work: &Work<'_>,
        to: Option<&Output>,
        from: usize,
        which: usize,
        panel: usize,
        tiles: &[Tile],
    ) {
        let Some(to) = to else { return };
        let first = panel * PANEL_ROWS;
        let columns = PANEL_ROWS.min(self.projections[which].matrix.rows - first);
        for (pair, sum) in work.pairs[slots_of(tiles)].iter().zip(&work.sums[from]) {
            Self::put(step, to, *pair as usize, first, &sum.0[..columns]);
        }
    }

    /// One panel of a group through every matrix that goes with it, and what is fused behind.
    fn panel(&self, step: &Step<'_>, work: &mut Work<'_>, which: usize, panel: usize, group: usize) {
        let tiles = work.tiles_of(group);
        let slots = slots_of(tiles);
        self.product(step, work, 0, which, panel, tiles);
        self.store(step, work, self.projections[which].out.as_ref(), 0, which, panel, tiles);
        match &self.then {
            Then::Nothing | Then::Combine { .. } => {}
            Then::Add { residual, out } => {
                let rows = self.projections[which].matrix.rows;
                let columns = panel * PANEL_ROWS..(panel * PANEL_ROWS + PANEL_ROWS).min(rows);
                for (pair, sum) in work.pairs[slots].iter().zip(&mut work.sums[0]) {
                    let pair = *pair as usize;
                    let residual = &step.row(*residual, pair)[columns.clone()];
                    sum.0.iter_mut().zip(residual).for_each(|(sum, r)| *sum += r);
                }
                self.store(step, work, Some(out), 0, which, panel, tiles);
            }
            Then::Gated { activated, out } => {
                self.product(step, work, 1, 1, panel, tiles);
                self.store(step, work, self.projections[1].out.as_ref(), 1, 1, panel, tiles);
                let [gate, up] = &mut *work.sums;
                let (gate, up) = (flat_mut(&mut gate[..slots.len()]), flat_mut(&mut up[..slots.len()]));
                step.kernels.swiglu_in_place(gate, up);
                self.store(step, work, out.as_ref(), 1, 1, panel, tiles);
                if activated.is_some() {
                    step.kernels.silu_in_place(flat_mut(&mut work.sums[0][..slots.len()]));
                    self.store(step, work, activated.as_ref(), 0, 0, panel, tiles);
                }
            }
        }
    }

    /// Panels `panels` of the down-projection of every group, summed with the router's weights; panel `next` is where this worker
    /// likely goes on.
    fn combine(
        &self,
        step: &Step<'_>,
        work: &mut Work<'_>,
        panels: std::ops::Range<usize>,
        next: usize,
        shared_row: bool,
    ) {
        let (Then::Combine { weights, .. }, Some((per_tok, ..))) = (&self.then, &self.experts) else {
            return;
        };
        let tokens = step.sizes.tokens;
        let width = panels.len();
        let all = self.projections[0].matrix.panels();
        work.combined[..tokens * width].fill(WideLanes([0.0; PANEL_ROWS]));
        let weights = step.rows(weights.with_width(1), 0..tokens * per_tok);
        for group in 0..work.groups() {
            let tiles = work.tiles_of(group);
            if work.goes_in_runs(group) {
                let then = match group + 1 {
                    behind if behind < work.groups() => self.run_at(work, (behind, 0, panels.start)),
                    _ if next < all => self.run_at(work, (0, 0, next)),
                    _ => &[],
                };
                let run = Run { which: 0, group, panels: panels.clone(), then, shared_row };
                self.combine_run(step, work, run, weights, *per_tok);
                continue;
            }
            for panel in panels.clone() {
                self.product(step, work, 0, 0, panel, tiles);
                self.store(step, work, self.projections[0].out.as_ref(), 0, 0, panel, tiles);
                let pairs = &work.pairs[slots_of(tiles)];
                let to = &mut work.combined[panel - panels.start..tokens * width];
                step.kernels.combine(&work.sums[0][..pairs.len()], pairs, weights, *per_tok, width, to);
            }
        }
        self.store_combined(step, work, panels);
    }

    /// Copies the weighted sums of some panels to where they are wanted, residual added.
    pub(super) fn store_combined(&self, step: &Step<'_>, work: &Work<'_>, panels: std::ops::Range<usize>) {
        let Then::Combine { combined, add, .. } = &self.then else { return };
        let width = panels.len();
        let columns =
            panels.start * PANEL_ROWS..(panels.end * PANEL_ROWS).min(self.projections[0].matrix.rows);
        for token in 0..step.sizes.tokens {
            let wide = wide_flat(&work.combined[token * width..(token + 1) * width]);
            let mut sums = [0.0; MAX_COMBINED];
            let sums = &mut sums[..columns.len()];
            step.kernels.narrow(wide, sums);
            if let Some(out) = combined {
                Self::put(step, out, token, columns.start, sums);
            }
            if let Some((residual, out)) = add {
                let residual = &step.row(*residual, token)[columns.clone()];
                sums.iter_mut().zip(residual).for_each(|(sum, r)| *sum += r);
                Self::put(step, out, token, columns.start, sums);
            }
        }
    }
}

/// The slots of a group.
fn slots_of(tiles: &[Tile]) -> std::ops::Range<usize> {
    match (tiles.first(), tiles.last()) {
        (Some(first), Some(last)) => first.first..last.first + last.tokens,
        _ => 0..0,
    }
}

/// Buffers for one row.
struct RowScratch<'a> {
    normed: &'a mut [f32],
    row: &'a mut super::activations::RowBuffers,
}

/// A worker's view while it multiplies.
pub(super) struct Work<'a> {
    panel: &'a mut Panel,
    wide: &'a mut PanelF32,
    pub(super) sums: &'a mut [Vec<Lanes>; 2],
    wide_sums: &'a mut Vec<WideLanes>,
    pub(super) combined: &'a mut Vec<WideLanes>,
    pub(super) activations: FilledTiles<'a>,
    pub(super) pairs: &'a [u32],
    tiles: &'a [Tile],
    first_tile: &'a [u32],
    /// Tiles of one row go through runs. In a step of several tokens they do in 8 bits alone, where a sum has the same bits so.
    has_runs: bool,
}

impl<'a> Work<'a> {
    fn goes_in_runs(&self, group: usize) -> bool {
        self.has_runs && self.tiles_of(group).iter().all(|tile| tile.tokens == 1)
    }

    pub(super) fn tiles_of(&self, group: usize) -> &'a [Tile] {
        &self.tiles[self.first_tile[group] as usize..self.first_tile[group + 1] as usize]
    }

    pub(super) fn groups(&self) -> usize {
        self.first_tile.len() - 1
    }
}

impl Launch for MatMuls {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, scratch: &mut Scratch) {
        let rows = self.rows(step.sizes);
        if rows == 0 {
            return;
        }
        let one = step.sizes.tokens == 1 && rows == 1;
        let writer = worker.index() == 0;
        let Scratch {
            panel, wide, sums, wide_sums, combined, row, normed, activations, slots, chosen, ..
        } = scratch;
        slots.cut_up_to(self.few_tokens(step));
        match &self.experts {
            None => slots.dense(rows),
            Some((per_tok, experts, choice)) => {
                let ids = match choice {
                    Experts::Chosen { ids } => Some(step.ids(*ids, 0..rows)),
                    Experts::Route(route) => {
                        let (ids, weights) = (&mut chosen.0[..*per_tok], &mut chosen.1[..*per_tok]);
                        route.token(step, 0, ids, weights);
                        if let (Some(to), true) = (&route.ids, writer) {
                            Self::put(step, to, 0, 0, bytemuck::cast_slice(ids));
                        }
                        if let (Some(to), true) = (&route.weights, writer) {
                            Self::put(step, to, 0, 0, weights);
                        }
                        Some(&*ids)
                    }
                    Experts::All => None,
                };
                match ids {
                    // Each choice stands alone, in the order of the choice.
                    Some(ids) if one => slots.one_token(ids),
                    Some(ids) => slots.by_expert(ids, *experts),
                    None => slots.by_head(rows, *experts),
                }
            }
        }
        // One row for all of a token's experts: a single tile serves them.
        let shared_row = one && !self.row_per_expert;
        let (kinds, inner) = (self.kinds, self.inner());
        let activations = if one {
            let wanted = if shared_row { 1 } else { self.slots(1) };
            for tile in &slots.tiles[..wanted] {
                let (to, scratch) =
                    (activations.own_tile_mut(kinds, *tile, inner), RowScratch { normed, row });
                self.prepare(step, to, tile.first, &slots.pairs, scratch, writer);
            }
            activations.own_filled()
        } else {
            for i in worker.chunks(slots.tiles.len()) {
                let (tile, scratch) = (slots.tiles[i], RowScratch { normed, row });
                // SAFETY: all workers cut the same slots into the same tiles; this one is this chunk's.
                let to = unsafe { step.activations.tile_mut(kinds, tile, inner) };
                self.prepare(step, to, tile.first, &slots.pairs, scratch, true);
            }
            worker.barrier();
            // SAFETY: filled before the barrier; what fills them next is another launch, behind another.
            unsafe { step.activations.filled() }
        };
        let mut work = Work {
            panel,
            wide,
            sums,
            wide_sums,
            combined,
            activations,
            pairs: &slots.pairs,
            tiles: &slots.tiles,
            first_tile: &slots.first_tile,
            has_runs: one || self.is_in_8_bits(),
        };
        // A step's few rows go through long runs; where there are more of them, the panel that is unpacked stays in the cache.
        let size = |panels: usize, most: usize| match step.sizes.tokens {
            ..=DECODE_TOKENS => chunk_panels(panels, worker),
            _ => most,
        };
        if matches!(self.then, Then::Combine { .. }) {
            let panels = self.projections[0].matrix.panels();
            let size = size(panels, COMBINE_PANELS).min((work.combined.len() / rows).max(1));
            for chunk in worker.chunks(panels.div_ceil(size)) {
                let next = (chunk + worker.threads()) * size;
                let run = chunk * size..(chunk * size + size).min(panels);
                self.combine(step, &mut work, run, next, shared_row);
            }
            return;
        }
        let total = self.panels_per_group() * work.groups();
        let size = size(total, PROMPT_PANELS);
        for chunk in worker.chunks(total.div_ceil(size)) {
            let (mut at, end) = (chunk * size, (chunk * size + size).min(total));
            while at < end {
                let (group, which, panel) = self.locate(at);
                if !work.goes_in_runs(group) {
                    self.panel(step, &mut work, which, panel, group);
                    at += 1;
                    continue;
                }
                let panels = panel..(panel + end - at).min(self.projections[which].matrix.panels());
                at += panels.len();
                // Workers that keep pace take chunks in turns.
                let next = if at < end { at } else { (chunk + worker.threads()) * size };
                let then = if next < total { self.run_at(&work, self.locate(next)) } else { &[] };
                self.run_of_panels(step, &mut work, Run { which, group, panels, then, shared_row });
            }
        }
    }
}
