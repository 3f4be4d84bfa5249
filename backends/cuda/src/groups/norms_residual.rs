//! kernels/norms_residual.cu.

use super::{MAX_NORM_ELEMS, Runs, int, matmul, one_row, width};
use crate::driver::Param;
use crate::ops::Emit;
use moe_run_graph::groups::parts::{RowNorm, RowNormKind, Scaled, Sum};
use moe_run_graph::groups::{Group, NormResidual, NormedSum, NormsResidual};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

impl Runs for NormsResidual {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let NormsResidual {
            parts,
            last: NormResidual { norm, add: Sum { node: _, other: _, y: _ } },
            scaled,
        } = self;
        let plain = |norm: &RowNorm| {
            let RowNorm { node: _, x, weight: _, eps: _, kind, y: _ } = norm;
            *kind == RowNormKind::Rms
                && one_row(graph, *x)
                && width(graph, *x) <= MAX_NORM_ELEMS
                && width(graph, *x).is_multiple_of(4)
        };
        scaled.iter().for_each(|Scaled { node: _, x: _, factor: _, y: _ }| {});
        plain(norm)
            && parts
                .as_ref()
                .is_none_or(|NormedSum { a, b, sum: Sum { node: _, other: _, y: _ } }| plain(a) && plain(b))
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        let NormsResidual { parts, last: NormResidual { norm, add }, scaled } = self;
        let of_part = |emit: &Emit<'_>, norm: &RowNorm| {
            let (weight, normed) = (emit.weights.opt_vector(norm.weight), emit.opt_value(norm.y));
            Ok::<[Param; 4], BackendError>([emit.value(norm.x)?, weight, Param::F32(norm.eps), normed])
        };
        let mut params = Vec::new();
        match parts {
            Some(NormedSum { a, b, sum }) => {
                params.extend(of_part(emit, a)?);
                params.extend(of_part(emit, b)?);
                params.push(emit.opt_value(sum.y));
            }
            None => {
                let (none, zero) = (Param::NULL, Param::F32(0.0));
                params.extend([emit.value(norm.x)?, none, zero, none, none, none, zero, none, none]);
            }
        }
        let (added, scale, y) = match scaled {
            Some(scaled) => (emit.opt_value(add.y), scaled.factor, scaled.y),
            None => (Param::NULL, 1.0, add.y),
        };
        let n = emit.width(norm.x)?;
        params.extend([
            emit.weights.opt_vector(norm.weight),
            Param::F32(norm.eps),
            emit.opt_value(norm.y),
            emit.value(add.other)?,
            added,
            Param::F32(scale),
            emit.value(y)?,
            int(n),
        ]);
        emit.push(Self::NAME, [emit.rows(norm.x), 1, 1], matmul::THREADS, 0, params);
        Ok(())
    }
}
