//! A post-norm and the addition to the residual stream: rms_norm.wgsl, or in front of another norm.

use super::Runs;
use crate::emit::Emitter;
use crate::ops::rms_norm::{self, RmsNorm};
use moe_run_graph::groups::parts::{RowNorm, RowNormKind, Sum};
use moe_run_graph::groups::{Group, NormResidual};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

impl Runs for NormResidual {
    fn fits(&self, _: &Graph, _: KvType) -> bool {
        let NormResidual { norm, add: Sum { node: _, other: _, y: _ } } = self;
        let RowNorm { node: _, x: _, weight: _, eps: _, kind, y: _ } = norm;
        *kind == RowNormKind::Rms
    }

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        let NormResidual { norm, add } = self;
        let node = e.plan.graph.node(norm.node).ok_or_else(|| BackendError::mismatch(Self::NAME))?;
        let norm = RmsNorm { weight: norm.weight, eps: norm.eps, heads: 1 };
        rms_norm::emit_with(e, node, norm, Some(add))
    }
}

/// Whether it may stand in front of another norm: `common/normed_input.wgsl`.
pub(super) fn fits_in_front(post: &NormResidual) -> bool {
    let NormResidual { norm, add: Sum { node: _, other: _, y: _ } } = post;
    let RowNorm { node: _, x: _, weight: Some(_), eps: _, kind: RowNormKind::Rms, y: _ } = norm else {
        return false;
    };
    true
}
