//! kernels/rms_norm.cu with the residual stream.

use super::{Runs, int, ops, whole_norm};
use crate::driver::Param;
use crate::ops::{Emit, rms_norm};
use moe_run_graph::groups::NormResidual;
use moe_run_graph::groups::parts::{RowNorm, RowNormKind, Sum};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

impl Runs for NormResidual {
    const KERNEL: &'static str = rms_norm::KERNEL;

    fn fits(&self, _: &Graph, _: KvType) -> bool {
        let NormResidual { norm, add: Sum { node: _, other: _, y: _ } } = self;
        let RowNorm { node: _, x: _, weight: _, eps: _, kind, y: _ } = norm;
        *kind == RowNormKind::Rms
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        let NormResidual { norm, add } = self;
        let n = emit.width(norm.x)?;
        let params = vec![
            emit.value(norm.x)?,
            emit.weights.opt_vector(norm.weight),
            emit.opt_value(norm.y),
            Param::F32(norm.eps),
            int(n),
            int(1),
            emit.value(add.other)?,
            emit.value(add.y)?,
        ];
        emit.push(rms_norm::KERNEL, [emit.rows(norm.x), 1, 1], ops::threads_for(n), 0, params);
        Ok(())
    }
}

/// A post-norm and the residual stream in front of another norm.
pub(super) fn fits_in_front(graph: &Graph, post: &NormResidual) -> bool {
    let NormResidual { norm, add: Sum { node: _, other: _, y: _ } } = post;
    whole_norm(graph, norm) && norm.kind == RowNormKind::Rms
}

/// What goes into it, and its parameters behind that: `PostNorm` in kernels/common/staged.cuh.
pub(super) fn in_front_params(emit: &Emit<'_>, post: &NormResidual) -> Result<[Param; 5], BackendError> {
    let NormResidual { norm, add } = post;
    Ok([
        emit.weights.opt_vector(norm.weight),
        Param::F32(norm.eps),
        emit.value(add.other)?,
        emit.opt_value(norm.y),
        emit.opt_value(add.y),
    ])
}
