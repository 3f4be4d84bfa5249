//! Attention with softmax on the run (FlashAttention): tiles of 64 cached positions, up to 64 query rows of one KV head.
//!
//! q [T, H·d], the cache → softmax(scale · q·kᵀ)·v: [T, H·dv]. Query heads that share a KV head are rows of one tile,
//! so the cache is decoded once for all of them. In place of the maximum, softmax takes off an integer power of two
//! (`moe_run_runtime::exp`), so tiles add up to the bits of the reference's one pass over all positions. Parts of 512 positions are
//! summed for themselves before they are added up, and a one-token step is split between them: any thread count gives the
//! same bits. Positions behind a query in its last tile count with probability 0; a NaN among their values shows in that
//! query too.

use super::kv_write::{Cache, Heads};
use super::{Launch, Scratch, Step};
use crate::kernels::{Kernels, Lanes, PANEL_ROWS, Panel, PanelF32, STEP_ELEMS, TILE_TOKENS};
use crate::memory::Shared;
use crate::pool::Worker;
use crate::share::{Input, Output, StateOutput};
use moe_run_graph::ir::AttentionAttrs;
use moe_run_reference::attention::PART_POSITIONS;
use moe_run_runtime::executable::{BLOCK_TOKENS, StepSequence};
use moe_run_runtime::exp::{NO_SHIFT, power_of_two, shift_of, softmax_factor};
use std::ops::Range;

/// Cached positions in a tile: a block's.
pub(super) const TILE_KEYS: usize = BLOCK_TOKENS;
/// Query rows (tokens × heads of the group) in a task, about.
const TASK_ROWS: usize = 64;
/// Query heads of a task of one token, where all share one latent.
pub const TASK_HEADS: usize = 16;

/// A worker's tiles.
pub struct Tiles {
    /// Queries `[row / 8][k][row % 8]`, scaled.
    q: Vec<f32>,
    /// Keys as panels of 16 positions; a long head takes several.
    keys: Vec<Box<PanelF32>>,
    /// Values `[key][dv]`.
    values: Vec<f32>,
    /// Scores, then probabilities, of 8 rows: `[row][key]`.
    scores: Vec<f32>,
    /// `[row][dv]`.
    out: Vec<f32>,
    /// The power of two that each row's exponentials are taken under, and their sum.
    shift: Vec<f32>,
    sum: Vec<f64>,
    /// The same of the parts before, where a task has several: `[row][dv]`, shifts and sums.
    before: (Vec<f32>, Vec<f32>, Vec<f64>),
    /// The current token's rotated heads.
    heads: Vec<f32>,
}

/// The largest sizes of any attention in the graph.
#[derive(Clone, Copy, Default)]
pub struct Largest {
    /// Query heads of a KV head.
    pub group: usize,
    /// Elements of a key head.
    pub head_dim: usize,
    /// Elements of a value head.
    pub value_head_dim: usize,
    /// KV heads.
    pub kv_heads: usize,
}

impl Largest {
    /// These and those of one more.
    pub fn with(self, attrs: &AttentionAttrs) -> Largest {
        Largest {
            group: self.group.max(attrs.group_size()),
            head_dim: self.head_dim.max(attrs.head_dim),
            value_head_dim: self.value_head_dim.max(attrs.value_head_dim),
            kv_heads: self.kv_heads.max(attrs.num_key_value_heads),
        }
    }
}

/// Query tokens in a task.
fn task_tokens(group: usize) -> usize {
    (TASK_ROWS / group).max(1)
}

impl Tiles {
    /// Room for the largest attention.
    pub fn new(largest: Largest) -> Tiles {
        let Largest { group, head_dim, value_head_dim, .. } = largest;
        let rows = (task_tokens(group.max(1)) * group).next_multiple_of(TILE_TOKENS);
        let panels = TILE_KEYS / PANEL_ROWS * head_dim.div_ceil(STEP_ELEMS);
        Tiles {
            q: vec![0.0; rows * head_dim],
            keys: (0..panels).map(|_| PanelF32::zeroed()).collect(),
            values: vec![0.0; TILE_KEYS * value_head_dim],
            scores: vec![0.0; TILE_TOKENS * TILE_KEYS],
            out: vec![0.0; rows * value_head_dim],
            shift: vec![0.0; rows],
            sum: vec![0.0; rows],
            before: (vec![0.0; rows * value_head_dim], vec![0.0; rows], vec![0.0; rows]),
            heads: vec![0.0; (group + 1) * head_dim],
        }
    }
}

/// What the parts of a split step came to, for each KV head, part and query head.
pub struct Partials {
    /// Sums of values, [dv].
    values: Shared<f32>,
    /// Shift and denominator.
    sums: Shared<[f64; 2]>,
}

impl Partials {
    fn rows(largest: Largest, cached: usize) -> usize {
        largest.kv_heads * largest.group * cached.div_ceil(PART_POSITIONS)
    }

    /// What it takes.
    pub fn bytes(largest: Largest, cached: usize) -> usize {
        Self::rows(largest, cached) * (4 * largest.value_head_dim + size_of::<[f64; 2]>())
    }

    /// Room for the largest attention over `cached` positions; `None` where the memory cannot be had.
    pub fn try_new(largest: Largest, cached: usize) -> Option<Partials> {
        let rows = Self::rows(largest, cached);
        let values = Shared::try_zeroed(rows * largest.value_head_dim)?;
        Some(Partials { values, sums: Shared::try_zeroed(rows)? })
    }
}

/// The launch.
pub struct Attention {
    /// Sizes, scale, window, cap.
    pub attrs: AttentionAttrs,
    /// [H].
    pub sinks: Option<Box<[f32]>>,
    /// Which positions are seen of those that all else leaves [T, S]; `None`: all.
    pub mask: Option<Input>,
    /// Queries.
    pub q: Input,
    /// The result.
    pub out: Output,
    /// The keys' state.
    pub key: usize,
    /// The values' state.
    pub value: usize,
    /// Set for one-token steps whose q, k and v come straight from their products: what happens to them first.
    pub fresh: Option<(Heads, Cache)>,
}

/// Query rows of a task: `tokens` × the heads of KV head `kv_head`.
#[derive(Clone)]
struct Task<'a> {
    kv_head: usize,
    /// Of the KV head's query heads.
    heads: Range<usize>,
    sequence: &'a StepSequence<'a>,
    tokens: Range<usize>,
    keys: Range<usize>,
}

impl Attention {
    /// The cached positions that a token sees.
    fn visible(&self, step: &Step<'_>, token: usize) -> Range<usize> {
        let position = step.position(token);
        self.attrs.first_visible(position)..position + 1
    }

    /// Columns of a token's row, copied.
    fn put(step: &Step<'_>, to: &Output, token: usize, first: usize, x: &[f32]) {
        // SAFETY: whoever asks has these columns alone: a task those of its KV head (of a split one-token step, the task of
        // the first part), a head of the second phase its own.
        unsafe { to.part_mut(step, token, first..first + x.len()) }.copy_from_slice(x);
    }

    /// Lays out the task's queries; for a one-token step from raw products, rotates them first, and k if it is in the
    /// task's part of the cache. The parts of one KV head rotate the same heads; only the first stores them, and only the
    /// last, which holds the token's own position, writes the cache.
    fn load_queries(&self, step: &Step<'_>, task: &Task<'_>, tiles: &mut Tiles) {
        let AttentionAttrs { head_dim: d, value_head_dim: dv, scale, .. } = self.attrs;
        let group = task.heads.len();
        let first = (task.kv_head * self.attrs.group_size() + task.heads.start) * d;
        for token in task.tokens.clone() {
            let x = &step.row(self.q, token)[first..first + group * d];
            let x = match &self.fresh {
                None => x,
                Some((q_heads, cache)) => {
                    let visible = self.visible(step, token);
                    let (q, k) = tiles.heads.split_at_mut(group * d);
                    q_heads.rotate(step, token, x, q, |to, x| {
                        if task.keys.start == visible.start {
                            Self::put(step, to, token, first, x);
                        }
                    });
                    if task.keys.end == visible.end {
                        let (at, k) = (task.kv_head * d, &mut k[..d]);
                        let x = &step.row(cache.k, token)[at..at + d];
                        cache.heads.rotate(step, token, x, k, |to, x| Self::put(step, to, token, at, x));
                        let encode = |state: &StateOutput, x: &[f32]| {
                            let (state, head) = (state.index(), task.kv_head);
                            let slot = step.slot(state, token);
                            // SAFETY: the head's slot of the token is the last part's, and no other part reads it.
                            unsafe { step.state.encode(step.kernels, state, head, slot, x) };
                        };
                        encode(&cache.key, k);
                        if let Some((v, value)) = &cache.value {
                            encode(value, &step.row(*v, token)[task.kv_head * dv..][..dv]);
                        }
                    }
                    &*q
                }
            };
            for (head, x) in x.chunks_exact(d).enumerate() {
                let row = (token - task.tokens.start) * group + head;
                let rows = task.tokens.len() * group;
                let width = TILE_TOKENS.min(rows - row / TILE_TOKENS * TILE_TOKENS);
                let tile = &mut tiles.q[row / TILE_TOKENS * TILE_TOKENS * d..][..width * d];
                for (x, to) in x.iter().zip(tile.chunks_exact_mut(width)) {
                    to[row % TILE_TOKENS] = x * scale;
                }
            }
        }
    }

    /// The bytes of slots of the task's head.
    fn cached<'a>(step: &Step<'a>, state: usize, task: &Task<'_>, slots: Range<usize>) -> &'a [u8] {
        // SAFETY: the slots are older than the last barrier or written by this worker; those beyond the step's last are
        // read but masked, and nobody writes them now.
        unsafe { step.state.bytes(state, task.kv_head, slots) }
    }

    /// Runs over the task's keys; leaves sums, shifts and denominators in `tiles`.
    fn run_task(&self, step: &Step<'_>, task: &Task<'_>, tiles: &mut Tiles, panel: &mut Panel) {
        self.load_queries(step, task, tiles);
        let dv = self.attrs.value_head_dim;
        let rows = task.tokens.len() * task.heads.len();
        let parts = task.keys.start / PART_POSITIONS..task.keys.end.div_ceil(PART_POSITIONS);
        if parts.len() == 1 {
            return self.run_part(step, task, tiles, panel);
        }
        tiles.before.0[..rows * dv].fill(0.0);
        tiles.before.1[..rows].fill(NO_SHIFT);
        tiles.before.2[..rows].fill(0.0);
        for part in parts {
            let start = task.keys.start.max(part * PART_POSITIONS);
            let end = task.keys.end.min((part + 1) * PART_POSITIONS);
            self.run_part(step, &Task { keys: start..end, ..task.clone() }, tiles, panel);
            let (out, shifts, sums) = &mut tiles.before;
            for row in 0..rows {
                let columns = row * dv..(row + 1) * dv;
                let part = (tiles.shift[row], tiles.sum[row], &tiles.out[columns.clone()]);
                add_part(step.kernels, part, &mut shifts[row], &mut sums[row], &mut out[columns]);
            }
        }
        std::mem::swap(&mut tiles.out, &mut tiles.before.0);
        std::mem::swap(&mut tiles.shift, &mut tiles.before.1);
        std::mem::swap(&mut tiles.sum, &mut tiles.before.2);
    }

    /// [`Attention::run_task`] for keys of one part, with the queries in place.
    fn run_part(&self, step: &Step<'_>, task: &Task<'_>, tiles: &mut Tiles, panel: &mut Panel) {
        let AttentionAttrs { head_dim: d, value_head_dim: dv, soft_cap, .. } = self.attrs;
        let group = task.heads.len();
        let rows = task.tokens.len() * group;
        tiles.out[..rows * dv].fill(0.0);
        tiles.shift[..rows].fill(NO_SHIFT);
        tiles.sum[..rows].fill(0.0);
        let steps = d.div_ceil(STEP_ELEMS);
        let mut key = task.keys.start / TILE_KEYS * TILE_KEYS;
        while key < task.keys.end {
            let keys = TILE_KEYS.min(task.keys.end - key);
            let first_slot = |state| step.state.slot(state, task.sequence, key);
            let panels = keys.div_ceil(PANEL_ROWS);
            for p in 0..panels {
                let slot = first_slot(self.key) + p * PANEL_ROWS;
                let bytes = Self::cached(step, self.key, task, slot..slot + PANEL_ROWS);
                for s in 0..steps {
                    let elems = STEP_ELEMS.min(d - s * STEP_ELEMS);
                    let bytes = &bytes[step.state.bytes_of(s * STEP_ELEMS)..];
                    let (format, stride) = (step.state.format(), step.state.row_bytes(self.key));
                    let to = &mut tiles.keys[p * steps + s];
                    step.kernels.unpack_f32(format, bytes, stride, PANEL_ROWS, elems, panel, to);
                }
            }
            let slot = first_slot(self.value);
            let bytes = Self::cached(step, self.value, task, slot..slot + keys);
            if self.attrs.value_in_key {
                // The rows are keys, of which the first elements are the values.
                let (row_bytes, value_bytes) = (step.state.row_bytes(self.value), step.state.bytes_of(dv));
                for (row, to) in bytes.chunks_exact(row_bytes).zip(tiles.values.chunks_exact_mut(dv)) {
                    step.state.decode_rows(step.kernels, self.value, &row[..value_bytes], to);
                }
            } else {
                step.state.decode_rows(step.kernels, self.value, bytes, &mut tiles.values[..keys * dv]);
            }
            for first in (0..rows).step_by(TILE_TOKENS) {
                let width = TILE_TOKENS.min(rows - first);
                let q = &tiles.q[first * d..][..width * d];
                for p in (0..panels).step_by(2) {
                    let mut sums = [[Lanes([0.0; PANEL_ROWS]); TILE_TOKENS]; 2];
                    let [first_sums, second_sums] = &mut sums;
                    let (first_sums, second_sums) = (&mut first_sums[..width], &mut second_sums[..width]);
                    for s in 0..steps {
                        let elems = STEP_ELEMS.min(d - s * STEP_ELEMS);
                        let q = &q[s * STEP_ELEMS * width..][..elems * width];
                        let keys = |p: usize| &tiles.keys[p * steps + s].w[..elems];
                        if p + 1 < panels {
                            let (w, out) = ([keys(p), keys(p + 1)], [&mut *first_sums, &mut *second_sums]);
                            step.kernels.mul_f32_pair(w, q, out);
                        } else {
                            step.kernels.mul_f32(keys(p), q, first_sums);
                        }
                    }
                    for (p, sums) in (p..panels).zip(&sums) {
                        for r in 0..width {
                            tiles.scores[r * TILE_KEYS + p * PANEL_ROWS..][..PANEL_ROWS]
                                .copy_from_slice(&sums[r].0);
                        }
                    }
                }
                for r in 0..width {
                    let token = task.tokens.start + (first + r) / group;
                    let seen = self.visible(step, token);
                    let seen = seen.start.max(task.keys.start)..seen.end.min(task.keys.end);
                    let seen = seen.start.clamp(key, key + keys) - key..seen.end.clamp(key, key + keys) - key;
                    let scores = &mut tiles.scores[r * TILE_KEYS..][..keys];
                    let mask = self
                        .mask
                        .map(|mask| &step.row(mask.with_width(step.sizes.cached), token)[key..][..keys]);
                    let row = first + r;
                    let out = &mut tiles.out[row * dv..][..dv];
                    soften(
                        step.kernels,
                        scores,
                        seen,
                        soft_cap,
                        mask,
                        &mut tiles.shift[row],
                        &mut tiles.sum[row],
                        out,
                    );
                }
                let out = &mut tiles.out[first * dv..][..width * dv];
                step.kernels.weigh(&tiles.scores, TILE_KEYS, width, &tiles.values[..keys * dv], dv, out);
            }
            key += TILE_KEYS;
        }
    }

    /// Divides a row by its denominator, the sink's share included.
    fn finish(&self, kernels: Kernels, head: usize, shift: f32, sum: f64, out: &mut [f32]) {
        let sink = self.sinks.as_ref().map(|sinks| sinks[head]);
        kernels.scale(softmax_factor(sum, shift, sink), out);
    }

    fn run_one(&self, step: &Step<'_>, worker: &mut Worker<'_>, scratch: &mut Scratch) {
        let (group, dv) = (self.attrs.group_size(), self.attrs.value_head_dim);
        let (visible, sequence) = (self.visible(step, 0), &step.sequences[step.runs[0].sequence]);
        let first_part = visible.start / PART_POSITIONS;
        let parts = visible.end.div_ceil(PART_POSITIONS) - first_part;
        let at = |kv_head: usize, part: usize| (kv_head * parts + part) * group;
        // The heads of the one latent are shared out too, unless they are rotated first: who does that writes the cache.
        let together = match (&self.fresh, self.attrs.value_in_key) {
            (None, true) => group.min(TASK_HEADS),
            _ => group,
        };
        let blocks = group.div_ceil(together);
        let tiles = &mut scratch.attention;
        for chunk in worker.chunks(self.attrs.num_key_value_heads * parts * blocks) {
            let (chunk, block) = (chunk / blocks, chunk % blocks);
            let (kv_head, part) = (chunk / parts, chunk % parts);
            let heads = block * together..((block + 1) * together).min(group);
            let start = visible.start.max((first_part + part) * PART_POSITIONS);
            let end = visible.end.min((first_part + part + 1) * PART_POSITIONS);
            let task = Task { kv_head, heads: heads.clone(), sequence, tokens: 0..1, keys: start..end };
            self.run_task(step, &task, tiles, &mut scratch.panel);
            for (row, h) in heads.enumerate() {
                let head = kv_head * group + h;
                let out = &mut tiles.out[row * dv..][..dv];
                if parts == 1 {
                    self.finish(step.kernels, head, tiles.shift[row], tiles.sum[row], out);
                    Self::put(step, &self.out, 0, head * dv, out);
                    continue;
                }
                let at = at(kv_head, part) + h;
                // SAFETY: this part's partials are this chunk's.
                unsafe {
                    step.partials.values.write(at * dv..(at + 1) * dv).copy_from_slice(out);
                    step.partials.sums.write(at..at + 1)[0] = [f64::from(tiles.shift[row]), tiles.sum[row]];
                }
            }
        }
        if parts == 1 {
            return;
        }
        worker.barrier();
        for head in worker.chunks(self.attrs.num_attention_heads) {
            let (kv_head, h) = (head / group, head % group);
            let (mut shift, mut sum) = (NO_SHIFT, 0.0);
            let out = &mut tiles.out[..dv];
            out.fill(0.0);
            for part in 0..parts {
                let at = at(kv_head, part) + h;
                // SAFETY: the partials are older than the barrier.
                let (values, sums) = unsafe {
                    (step.partials.values.read(at * dv..(at + 1) * dv), step.partials.sums.read(at..at + 1))
                };
                let [part_shift, part_sum] = sums[0];
                add_part(step.kernels, (part_shift as f32, part_sum, values), &mut shift, &mut sum, out);
            }
            self.finish(step.kernels, head, shift, sum, out);
            Self::put(step, &self.out, 0, head * dv, out);
        }
    }
}

/// Takes the scores that a mask does not let through for −∞, whose exponential is 0: no sum of the others has another bit.
pub(super) fn hide(mask: &[f32], scores: &mut [f32]) {
    for (score, mask) in scores.iter_mut().zip(mask) {
        *score = if *mask == 0.0 { f32::NEG_INFINITY } else { *score };
    }
}

/// Adds a part's shift, denominator and sums to those of the parts before.
fn add_part(
    kernels: Kernels,
    (part_shift, part_sum, part): (f32, f64, &[f32]),
    shift: &mut f32,
    sum: &mut f64,
    out: &mut [f32],
) {
    raise(kernels, part_shift, shift, sum, out);
    let shrink = power_of_two(part_shift - *shift);
    *sum += part_sum * f64::from(shrink);
    kernels.add_scaled(shrink, part, out);
}

/// Takes sums under another shift if that is the larger: an exact factor.
fn raise(kernels: Kernels, wanted: f32, shift: &mut f32, sum: &mut f64, out: &mut [f32]) {
    if wanted > *shift {
        let shrink = power_of_two(*shift - wanted);
        *sum *= f64::from(shrink);
        kernels.scale(shrink, out);
        *shift = wanted;
    }
}

/// One row's scores of a tile into exponentials under a running shift: `seen` counts, the rest becomes 0.
pub(super) fn soften(
    kernels: Kernels,
    scores: &mut [f32],
    seen: Range<usize>,
    soft_cap: Option<f32>,
    mask: Option<&[f32]>,
    shift: &mut f32,
    sum: &mut f64,
    out: &mut [f32],
) {
    scores[..seen.start].fill(0.0);
    scores[seen.end..].fill(0.0);
    if seen.is_empty() {
        return;
    }
    let scores = &mut scores[seen.clone()];
    if let Some(cap) = soft_cap {
        scores.iter_mut().for_each(|s| *s = cap * (*s / cap).tanh());
    }
    // Behind the cap, which would make −∞ a score again.
    if let Some(mask) = mask {
        hide(&mask[seen], scores);
    }
    raise(kernels, shift_of(kernels.max(scores)), shift, sum, out);
    *sum += kernels.exp_sum(scores, *shift);
}

impl Launch for Attention {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, scratch: &mut Scratch) {
        let tokens = step.sizes.tokens;
        if tokens == 1 {
            return self.run_one(step, worker, scratch);
        }
        let (group, dv) = (self.attrs.group_size(), self.attrs.value_head_dim);
        let per_task = task_tokens(group);
        let (kv_heads, stretches) = (self.attrs.num_key_value_heads, step.stretches(per_task));
        for chunk in worker.chunks(kv_heads * stretches) {
            // A sequence's longest first: what is left at the end is short.
            let kv_head = chunk % kv_heads;
            let (sequence, range) = step.stretch(per_task, stretches - 1 - chunk / kv_heads);
            let keys = self.visible(step, range.start).start..self.visible(step, range.end - 1).end;
            let task = Task { kv_head, heads: 0..group, sequence, tokens: range.clone(), keys };
            let tiles = &mut scratch.attention;
            self.run_task(step, &task, tiles, &mut scratch.panel);
            for row in 0..range.len() * group {
                let head = kv_head * group + row % group;
                let out = &mut tiles.out[row * dv..][..dv];
                self.finish(step.kernels, head, tiles.shift[row], tiles.sum[row], out);
                Self::put(step, &self.out, range.start + row / group, head * dv, out);
            }
        }
    }
}
