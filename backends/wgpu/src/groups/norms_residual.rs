//! A post-norm, of one row or of the sum of two normed ones, the residual stream and a factor: norms_residual.wgsl.

use super::{Runs, row_per_token};
use crate::emit::{Emitter, Extent, Grid, NONE, Rows};
use moe_run_graph::groups::parts::{RowNorm, RowNormKind, Scaled, Sum};
use moe_run_graph::groups::{Group, NormResidual, NormedSum, NormsResidual};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

const LANES: u32 = 256;

impl Runs for NormsResidual {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let NormsResidual {
            parts,
            last: NormResidual { norm, add: Sum { node: _, other: _, y: _ } },
            scaled,
        } = self;
        let plain = |norm: &RowNorm| {
            let RowNorm { node: _, x, weight: _, eps: _, kind, y: _ } = norm;
            *kind == RowNormKind::Rms && row_per_token(graph, *x)
        };
        scaled.iter().for_each(|Scaled { node: _, x: _, factor: _, y: _ }| {});
        plain(norm)
            && parts
                .as_ref()
                .is_none_or(|NormedSum { a, b, sum: Sum { node: _, other: _, y: _ } }| plain(a) && plain(b))
    }

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        let NormsResidual { parts, last: NormResidual { norm, add }, scaled } = self;
        let stored = |value| e.stored(value).unwrap_or(NONE);
        let (a, b) = (parts.as_ref().map(|parts| &parts.a), parts.as_ref().map(|parts| &parts.b));
        let weight = |norm: Option<&RowNorm>| e.small(norm.and_then(|norm| norm.weight));
        let (added, scale, y) = match scaled {
            Some(scaled) => (stored(add.y), scaled.factor, scaled.y),
            None => (NONE, 1.0, add.y),
        };
        let width = e.shape(norm.x).width().ok_or_else(|| BackendError::mismatch(Self::NAME))?;
        let mut params = vec![
            ("width", (width as u32).into()),
            ("a", e.at(a.map_or(norm.x, |a| a.x))?.into()),
            ("a_norm", weight(a)?.into()),
            ("a_eps", a.map_or(0.0, |a| a.eps).into()),
            ("a_normed", a.map_or(NONE, |a| stored(a.y)).into()),
            ("b", b.map_or(Ok(NONE), |b| e.at(b.x))?.into()),
            ("b_norm", weight(b)?.into()),
            ("b_eps", b.map_or(0.0, |b| b.eps).into()),
            ("b_normed", b.map_or(NONE, |b| stored(b.y)).into()),
            ("sum", parts.as_ref().map_or(NONE, |parts| stored(parts.sum.y)).into()),
            ("norm", e.small(norm.weight)?.into()),
            ("eps", norm.eps.into()),
            ("normed", stored(norm.y).into()),
            ("residual", e.at(add.other)?.into()),
            ("added", added.into()),
            ("scale", scale.into()),
        ];
        params.push(("y", e.output(y).into()));
        let rows = Extent::Rows { rows: Rows::of(e.shape(y)), times: 1, over: 1 };
        let one = Extent::Fixed(1);
        e.push(e.variant(Self::NAME, &[("LANES", LANES)]), Grid::new(rows, one, one), &params);
        Ok(())
    }
}
