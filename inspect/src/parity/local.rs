//! An op's own error: the distance of its output from the other side's, both having had the same inputs.

use crate::taps::compare::{compare, ratio};
use moe_run_graph::ir::{Graph, Node, Op, WeightId, WeightSlice};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::WeightSource;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// An error and what it is made of.
#[derive(Debug, Clone)]
pub(super) struct LocalError {
    /// The larger of the two.
    pub value: f64,
    /// Of the whole output, and for ops without weights of its worst row.
    pub relative_l2: f64,
    /// max |Δ| / (‖W_row‖·‖x‖) over output channels, for products.
    pub worst_channel: Option<(usize, f64)>,
}

/// ‖W_row‖ of weights, computed once.
#[derive(Default)]
pub(super) struct RowNorms {
    norms: HashMap<(WeightId, usize), Vec<f64>>,
}

impl RowNorms {
    /// Of the rows of a slice, of one expert where there are experts.
    fn of(
        &mut self,
        graph: &Graph,
        weights: &dyn WeightSource,
        slice: &WeightSlice,
        expert: usize,
    ) -> Result<&[f64], BackendError> {
        let decl = graph.weight(slice.tensor);
        let cols = decl.shape.last().copied().unwrap_or(0);
        let rows_of_expert = decl.shape.iter().rev().nth(1).copied().unwrap_or(0);
        let damaged = |found_bytes: usize| BackendError::Weight {
            name: decl.name.clone(),
            wanted_bytes: decl.format.row_bytes(cols).unwrap_or(0) * rows_of_expert,
            found_bytes,
        };
        let norms = match self.norms.entry((slice.tensor, expert)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let bytes = weights.weight(decl).ok_or_else(|| damaged(0))?;
                let row_bytes = decl.format.row_bytes(cols).filter(|b| *b > 0).ok_or_else(|| damaged(0))?;
                let start = expert * rows_of_expert * row_bytes;
                let part = bytes
                    .get(start..start + rows_of_expert * row_bytes)
                    .ok_or_else(|| damaged(bytes.len()))?;
                let mut row = vec![0.0f32; cols];
                let norm_of_row = |bytes: &[u8]| {
                    decl.format.decode_row(bytes, &mut row);
                    norm(&row)
                };
                place.insert(part.chunks_exact(row_bytes).map(norm_of_row).collect())
            }
        };
        norms.get(slice.rows.clone()).ok_or_else(|| damaged(0))
    }
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// The operands of a product, as both sides had them.
pub(super) struct Operands<'a> {
    /// x, its rows as long as W's.
    pub x: &'a [f32],
    /// Expert ids [T, K] of an ExpertMatMul.
    pub ids: Option<&'a [u32]>,
}

/// The local error of `node`, whose output is `a` here and `b` on the other side; `width` elements a row.
pub(super) fn local_error(
    graph: &Graph,
    weights: &dyn WeightSource,
    norms: &mut RowNorms,
    node: &Node,
    a: &[f32],
    b: &[f32],
    width: usize,
    operands: Option<&Operands<'_>>,
) -> Result<LocalError, BackendError> {
    let whole = compare(a, b, 0);
    let mut error =
        LocalError { value: whole.relative_l2, relative_l2: whole.relative_l2, worst_channel: None };
    // Without a difference there is no error, whatever the values are: what both sides have at the same places (NaN
    // and Inf too) is the model's. What only one side has is infinitely far.
    if whole.max.is_none() || whole.non_finite_mismatches > 0 {
        return Ok(error);
    }
    let product = match &node.op {
        Op::MatMul { weight, bias: _, scale } => Some((weight, f64::from(scale.unwrap_or(1.0).abs()))),
        Op::ExpertMatMul { weight, bias: _ } => Some((weight, 1.0)),
        Op::Embed { .. }
        | Op::RmsNorm { .. }
        | Op::LayerNorm { .. }
        | Op::HeadMatMul { .. }
        | Op::PositionScale(_)
        | Op::MulHeads
        | Op::Rope { .. }
        | Op::KvWrite { .. }
        | Op::Attention(_)
        | Op::AttentionScores(_)
        | Op::AttentionSoftmax(_)
        | Op::Router(_)
        | Op::GivenExperts(_)
        | Op::IndexScores(_)
        | Op::IndexSelect { .. }
        | Op::GatedAct { .. }
        | Op::ExpertCombine
        | Op::CausalConv(_)
        | Op::DeltaGates { .. }
        | Op::DeltaRule(_)
        | Op::SsmScan(_)
        | Op::HyperGates(_)
        | Op::HyperConnect { .. }
        | Op::Compress(_)
        | Op::CompressedAttention(_)
        | Op::Add
        | Op::Mul
        | Op::Pointwise { .. }
        | Op::Concat { .. }
        | Op::Slice { .. }
        | Op::GetRows
        | Op::Tap { .. } => None,
    };
    let Some(((slice, scale), operands)) = product.zip(operands) else {
        // Where a residual or a norm is added up from large parts, a row is judged by its own length.
        for (x, y) in a.chunks_exact(width.max(1)).zip(b.chunks_exact(width.max(1))) {
            error.relative_l2 = error.relative_l2.max(compare(x, y, 0).relative_l2);
        }
        error.value = error.relative_l2;
        return Ok(error);
    };
    let inner = graph.weight(slice.tensor).shape.last().copied().unwrap_or(1).max(1);
    let x_norms: Vec<f64> = operands.x.chunks_exact(inner).map(norm).collect();
    let rows = a.len() / width.max(1);
    let mut worst = (0, 0.0f64);
    for row in 0..rows {
        let expert = operands.ids.map_or(0, |ids| ids[row] as usize);
        // x is [T, in] or, for each chosen expert, [T, K, in].
        let x_norm = scale * x_norms[row * x_norms.len() / rows];
        let row_norms = norms.of(graph, weights, slice, expert)?;
        for channel in 0..width {
            let (mine, theirs) = (a[row * width + channel], b[row * width + channel]);
            if mine == theirs || !mine.is_finite() {
                continue;
            }
            let delta = (f64::from(mine) - f64::from(theirs)).abs();
            let length = row_norms.get(channel).copied().unwrap_or(0.0) * x_norm;
            // Lengths are not finite only where the product is not: a number that comes out nevertheless, and another
            // on the other side, is as far off as can be.
            let share = if length.is_finite() { ratio(delta, length) } else { f64::INFINITY };
            if share > worst.1 {
                worst = (channel, share);
            }
        }
    }
    error.worst_channel = Some(worst);
    error.value = error.value.max(worst.1);
    Ok(error)
}
