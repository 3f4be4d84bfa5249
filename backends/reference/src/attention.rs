//! softmax(scale · q·kᵀ)·v over the cached positions that a query may see.

use moe_run_graph::ir::AttentionAttrs;
use moe_run_runtime::executable::{Ring, StepSequence};
use moe_run_runtime::exp::{exp_shifted, shift_of, softmax_factor};

/// Positions whose values are summed before they join those in front of them, so that long sums can be made side by side.
pub const PART_POSITIONS: usize = 512;

/// Where the rows of a step stand: position and sequence of each, and the sequences' places in the states.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub positions: &'a [u32],
    pub sequence: &'a [u32],
    pub sequences: &'a [StepSequence<'a>],
    /// Of the states that are read.
    pub ring: Option<Ring>,
}

impl Rows<'_> {
    /// The slot of a position of a row's sequence.
    pub fn slot(&self, row: usize, position: usize) -> usize {
        self.sequences[self.sequence[row] as usize].slot_in(self.ring, position)
    }
}

/// Which positions each row sees, of those that all else leaves [T, S].
#[derive(Clone, Copy)]
pub(super) struct Mask<'a> {
    pub mask: &'a [f32],
    pub cached: usize,
}

/// What softmax takes beside the scores.
#[derive(Clone, Copy)]
pub(super) struct Beside<'a> {
    /// A logit a head [H].
    pub sinks: Option<&'a [f32]>,
    pub mask: Option<Mask<'a>>,
}

impl Beside<'_> {
    /// Whether a row sees a position that all else leaves.
    pub fn sees(&self, row: usize, position: usize) -> bool {
        self.mask.is_none_or(|m| m.mask[row * m.cached + position] != 0.0)
    }
}

/// Which cached positions a query at `position` sees: causal, and no further back than window and chunk.
pub(super) fn visible(position: u32, attrs: &AttentionAttrs) -> std::ops::Range<usize> {
    attrs.first_visible(position as usize)..position as usize + 1
}

/// (scale · q)·k by fused multiply-adds, first to last, softly capped.
pub(super) fn score(q: &[f32], k: &[f32], attrs: &AttentionAttrs) -> f32 {
    let score = q.iter().zip(k).fold(0.0f32, |sum, (q, k)| (q * attrs.scale).mul_add(*k, sum));
    attrs.soft_cap.map_or(score, |cap| cap * (score / cap).tanh())
}

/// Turns scores into e^s · 2^−n, n being an integer near the largest in octaves; gives the factor that makes them
/// probabilities: 1 / Σ, the sink's logit counting in the denominator only.
pub(super) fn softmax(scores: &mut [f32], sink: Option<f32>) -> f32 {
    let shift = shift_of(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    scores.iter_mut().for_each(|s| *s = exp_shifted(*s, shift));
    softmax_factor(scores.iter().map(|p| f64::from(*p)).sum(), shift, sink)
}

/// `q` [T, H·d], `keys` [S, G·d], `values` [S, G·dv], `rows` [T] → `out` [T, H·dv]. Position p of a sequence is in the slot
/// that its blocks give, or its ring. Where values are parts of keys, `values` are the keys.
pub(super) fn attention(
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    rows: Rows<'_>,
    attrs: &AttentionAttrs,
    beside: Beside<'_>,
    out: &mut [f32],
) {
    let (d, dv) = (attrs.head_dim, attrs.value_head_dim);
    let value_width = if attrs.value_in_key { d } else { dv };
    let (k_row, v_row) = (attrs.num_key_value_heads * d, attrs.num_key_value_heads * value_width);
    for (t, position) in rows.positions.iter().enumerate() {
        let seen = visible(*position, attrs);
        for head in 0..attrs.num_attention_heads {
            let kv_head = head / attrs.group_size();
            let q = &q[(t * attrs.num_attention_heads + head) * d..][..d];
            let key = |p: usize| &keys[rows.slot(t, p) * k_row + kv_head * d..][..d];
            // e^−∞ is 0, to the last bit of every sum.
            let score_of = |q: &[f32], k: &[f32], p: usize| match beside.sees(t, p) {
                true => score(q, k, attrs),
                false => f32::NEG_INFINITY,
            };
            let mut weights: Vec<f32> = seen.clone().map(|p| score_of(q, key(p), p)).collect();
            let factor = softmax(&mut weights, beside.sinks.map(|s| s[head]));
            let out = &mut out[(t * attrs.num_attention_heads + head) * dv..][..dv];
            for (i, out) in out.iter_mut().enumerate() {
                let (mut total, mut part) = (0.0f32, 0.0f32);
                for (w, p) in weights.iter().zip(seen.clone()) {
                    if p % PART_POSITIONS == 0 {
                        total += std::mem::take(&mut part);
                    }
                    part = w.mul_add(values[rows.slot(t, p) * v_row + kv_head * value_width + i], part);
                }
                *out = (total + part) * factor;
            }
        }
    }
}
