//! All between the products of latent attention and the attention: latent_heads.wgsl.

use super::{
    Matrix, Runs, WORKGROUP_BYTES, input_params, matrix, product, row_per_token, staged_bytes, whole_norm,
};
use crate::emit::{Emitter, Extent, Grid, NONE, Rows, StateBinding};
use crate::params::Param;
use moe_run_graph::groups::parts::{Product, Rotated, RowNorm, RowNormKind};
use moe_run_graph::groups::{Group, LatentHeads, LatentQuery};
use moe_run_graph::ir::{Graph, RopePairing};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

const LANES: usize = 64;
/// Rows of a workgroup: more where each makes its query anew.
const ROWS: u32 = 64;
const ROWS_OF_PRODUCT: u32 = 256;

fn plain_norm(norm: &RowNorm) -> bool {
    whole_norm(norm) && norm.kind == RowNormKind::Rms
}

/// Elements of a query, of its part that meets the latent, of its rotated part, and of the latent.
fn widths(group: &LatentHeads, graph: &Graph) -> Option<[usize; 4]> {
    let width = |value| graph.value(value).shape.width();
    let d = width(group.nope.x)? / group.q_joined.heads.max(1);
    Some([d, group.nope.len, group.pe.len, width(group.c_norm.x)?])
}

/// The matrix of the latent of queries.
fn of_latent(graph: &Graph, query: &LatentQuery) -> Option<Matrix> {
    let LatentQuery { norm, product: p } = query;
    let Product { node: _, x, weight: _, bias: None, scale: None, y: _ } = p else { return None };
    product(graph, p).filter(|_| plain_norm(norm) && row_per_token(graph, *x))
}

impl Runs for LatentHeads {
    fn fits(&self, graph: &Graph, kv_type: KvType) -> bool {
        // The others, and what their heads, rotations and factors are, is told by `is_placed_alike`.
        let LatentHeads {
            query,
            nope,
            pe: _,
            q_rope: _,
            absorbed,
            q_joined: _,
            tempered: _,
            c_norm,
            k_rope: _,
            k_joined: _,
            write,
        } = self;
        let (Some([d, nope_width, pe_width, rank]), Some(key)) =
            (widths(self, graph), matrix(graph, &absorbed.weight))
        else {
            return false;
        };
        let latent = query.as_ref().map(|query| of_latent(graph, query));
        // One form of the activations serves both products; floats' k matrices take their part as it is.
        let is_alike = |latent: &Option<Matrix>| {
            latent.as_ref().is_some_and(|m| m.format.is_quantized() >= key.format.is_quantized())
        };
        let staged = latent.as_ref().map_or(0, |m| m.as_ref().map_or(usize::MAX, |m| staged_bytes(m.cols)));
        let unit = if kv_type == KvType::Q8_0 { 32 } else { 2 };
        latent.as_ref().is_none_or(is_alike)
            && row_per_token(graph, nope.x)
            && self.is_placed_alike(graph)
            // It writes the slot as it is: no latent is read within a window alone.
            && graph.state(write.key).window().is_none()
            && plain_norm(c_norm)
            && pe_width.is_multiple_of(2)
            && (rank + pe_width).is_multiple_of(unit)
            && staged.saturating_add(4 * d + staged_bytes(nope_width) + LANES * 16) <= WORKGROUP_BYTES
    }

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        let LatentHeads {
            query,
            nope,
            pe,
            q_rope,
            absorbed,
            q_joined,
            tempered,
            c_norm,
            k_rope,
            k_joined,
            write,
        } = self;
        let defect = || BackendError::mismatch(Self::NAME);
        let graph = &e.plan.graph;
        let [d, nope_width, pe_width, rank] = widths(self, graph).ok_or_else(defect)?;
        let heads = q_joined.heads as u32;
        let key = matrix(graph, &absorbed.weight).ok_or_else(defect)?;
        let key_layout = e.layout(&absorbed.weight)?;
        let latent = query.as_ref().map(|query| of_latent(graph, query).ok_or_else(defect)).transpose()?;
        let rows = if query.is_some() { ROWS_OF_PRODUCT } else { ROWS };
        let mut sizes = vec![
            ("LANES", LANES as u32),
            ("ROWS", rows),
            ("HEAD", d as u32),
            ("NOPE", nope_width as u32),
            ("PE", pe_width as u32),
            ("RANK", rank as u32),
        ];
        sizes.extend(latent.as_ref().map(|latent| ("COLS", latent.cols as u32)));
        let mut variant = e.variant(Self::NAME, &sizes).kv(e.kv_type);
        let stored = |e: &Emitter<'_>, value| e.stored(value).unwrap_or(NONE);
        let mut params = match query {
            Some(query) => input_params(e, query.norm.x, Some(&query.norm), None)?,
            None => input_params(e, nope.x, None, None)?,
        };
        // The key's latent is normed in any case.
        params.retain(|(name, _)| *name != "norms");
        params.push(("norms", 1u32.into()));
        if let (Some(query), Some(latent)) = (query, &latent) {
            let layout = e.layout(&query.product.weight)?;
            variant = variant.weight("query", latent.format).fused();
            params.extend([
                ("query_first", (latent.first as u32).into()),
                ("query_row_words", (layout.row_words as u32).into()),
                ("query_blocks", (layout.blocks as u32).into()),
                ("query_y", stored(e, query.product.y).into()),
            ]);
        }
        let format = latent.as_ref().map_or(key.format, |latent| latent.format);
        let variant = variant.weight("key_w", key.format).input(e.input_kind(format));
        let (joined, y, factor) = match tempered {
            Some(tempered) => (stored(e, q_joined.y), tempered.y, Some(tempered.attrs)),
            None => (NONE, q_joined.y, None),
        };
        let (pairs, table, interleaved) = match q_rope {
            Some(rope) => {
                let node = graph.node(rope.node).ok_or_else(defect)?;
                let (pairs, angles) = e.angles(node, rope.table)?;
                (pairs, angles, rope.pairing == RopePairing::Interleaved)
            }
            None => (0, 0, false),
        };
        let turned = |e: &Emitter<'_>, rope: &Option<Rotated>| {
            rope.as_ref().and_then(|rope| e.stored(rope.y)).unwrap_or(NONE)
        };
        let chosen = absorbed.weight.experts.as_ref().map_or(0, |experts| experts.start);
        let y_at = e.output(y);
        let more: Vec<(&'static str, Param)> = vec![
            ("heads", heads.into()),
            ("nope_from", (nope.start as u32).into()),
            ("pe_from", (pe.start as u32).into()),
            ("nope_y", stored(e, nope.y).into()),
            ("pe_y", stored(e, pe.y).into()),
            ("turned", turned(e, q_rope).into()),
            ("absorbed", stored(e, absorbed.y).into()),
            ("joined", joined.into()),
            ("y", y_at.into()),
            ("key_first", ((chosen * key.expert_rows + key.first) as u32).into()),
            ("key_head_rows", (key.expert_rows as u32).into()),
            ("key_w_row_words", (key_layout.row_words as u32).into()),
            ("key_w_blocks", (key_layout.blocks as u32).into()),
            ("factor_scale", factor.map_or(0.0, |factor| factor.scale).into()),
            ("length", factor.map_or(0, |factor| factor.length as u32).into()),
            ("offset", factor.map_or(0, |factor| factor.offset as u32).into()),
            ("positions", e.at(graph.inputs.positions)?.into()),
            ("table", table.into()),
            ("pairs", pairs.into()),
            ("interleaved", u32::from(interleaved).into()),
            ("c", e.at(c_norm.x)?.into()),
            ("c_norm", e.small(c_norm.weight)?.into()),
            ("c_eps", c_norm.eps.into()),
            ("c_normed", stored(e, c_norm.y).into()),
            ("k_pe", e.at(k_rope.as_ref().map_or(k_joined.b, |rope| rope.x))?.into()),
            ("k_turned", turned(e, k_rope).into()),
            ("k_joined", e.output(k_joined.y).into()),
            ("slots", e.at(write.slots)?.into()),
            ("capacity", (e.plan.max_sizes.cached as u32).into()),
        ];
        params.extend(more);
        let tokens = Extent::Rows { rows: Rows::of(e.shape(y)), times: 1, over: 1 };
        let parts = Extent::Fixed((rank as u32).div_ceil(rows));
        e.push(variant, Grid::new(parts, Extent::Fixed(heads + 1), tokens), &params);
        if let Some(query) = query {
            e.bind_part(&query.product.weight, 0);
        }
        e.bind_part(&absorbed.weight, 0);
        if let Some(dispatch) = e.last() {
            dispatch.state = StateBinding::Write(write.key);
        }
        Ok(())
    }
}
